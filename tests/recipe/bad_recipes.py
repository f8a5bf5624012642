"""Recipes, `--set` and options that are unknown, contradict each other or mean nothing."""

from bad_inputs.case import Arrange, area
from bad_inputs.commands import GPTQ, ON_DATA, plain, quantize
from zoo import zoo_model


def recipe(text: str | bytes) -> Arrange:
    """A recipe file."""
    return lambda box: ["quantize", zoo_model("llama"), "--recipe", box.write("my.yaml", text)]


def _aliases(depth: int) -> str:
    """Some lines of YAML that are ten lists of ten lists and so on when they are written out."""
    return f"[&a{depth} {_aliases(depth - 1)}{f', *a{depth}' * 9}]" if depth else "x"


ROWS = [
    ("an unknown key", 2, "unknown key bitz", recipe("bitz: 4\n")),
    ("a value of the wrong kind", 2, "bits='four'", recipe("bits: four\n")),
    ("a key that the method ignores", 2, "would ignore iters", recipe("method: rtn\niters: 5\n")),
    ("a key twice", 2, "the key bits is given twice", recipe("method: rtn\nbits: 4\nbits: 3\n")),
    ("a number for a key", 2, "has the key 1", recipe("1: 2\n")),
    ("a list for the method", 2, "method=['rtn']", recipe("method: [rtn]\n")),
    ("an unknown method", 2, "method='awq'", recipe("method: awq\n")),
    (
        "a layer's value out of range",
        2,
        "the override of *.up_proj: bits=99",
        recipe("layers: {'*.up_proj': {bits: 99}}\n"),
    ),
    (
        "a layer's key that layers do not have",
        2,
        "overrides iters",
        recipe("layers: {'*.up_proj': {iters: 9}}\n"),
    ),
    (
        "a pattern that matches nothing",
        2,
        "matches no Linear",
        recipe("method: rtn\nlayers: {'*.no': {bits: 3}}\n"),
    ),
    ("everything skipped", 2, "every Linear is left out", recipe("method: rtn\nskip: ['*']\n")),
    ("a list instead of keys", 2, "holds list", recipe("- bits\n")),
    ("an empty file", 2, "holds nothing", recipe("")),
    ("broken YAML", 2, "line 2, column 1: expected ',' or ']'", recipe("bits: [4\n")),
    (
        "YAML that runs code",
        2,
        "could not determine a constructor",
        recipe("bits: !!python/object/apply:os.mkdir [x]\n"),
    ),
    ("YAML nested without end", 2, "nested too deeply", recipe("[" * 3000)),
    (
        "YAML whose aliases multiply",
        2,
        "bits=[[[...], [...], [...], [...], ...]",
        recipe(f"bits: {_aliases(12)}\n"),
    ),
    ("bytes that are no text", 2, "a YAML file in UTF-8 is expected", recipe(b"\xff\xfe\x00")),
    ("no such file", 2, "No such file", lambda b: ["quantize", zoo_model("llama"), "--recipe", "none.yaml"]),
    (
        "no such recipe",
        2,
        "no recipe 'gptq-w4'",
        lambda b: ["quantize", zoo_model("llama"), "--recipe", "gptq-w4"],
    ),
    ("`--set bits`", 2, "key=value is expected", plain("--set", "bits")),
    ("`--set bitz=4`", 2, "unknown key bitz", plain("--set", "bitz=4")),
    ("`--set bits=[4`", 2, "the value is no YAML", plain("--set", "bits=[4")),
    ("`--set bits=`", 2, "bits=None", plain("--set", "bits=")),
    ("`--set bits=3 --set bits=4`", 2, "--set gives bits twice", plain("--set", "bits=3", "--set", "bits=4")),
    (
        "`--set` with YAML that runs code",
        2,
        "the value is no YAML",
        plain("--set", "bits=!!python/name:os.mkdir"),
    ),
    ("`--bits 9`", 2, "bits=9", plain("--bits", "9")),
    ("`--bits four`", 2, "Invalid value for '--bits'", plain("--bits", "four")),
    ("`--bitz 4`", 2, "No such option: --bitz", plain("--bitz", "4")),
    (
        "`--method spqr --outliers some`",
        2,
        "outliers='some'",
        lambda b: ["quantize", zoo_model("llama"), "--method", "spqr", "--outliers", "some"],
    ),
    (
        "an encoding that nobody knows",
        2,
        "is no encoding of text",
        lambda b: ["quantize", zoo_model("llama"), *GPTQ, "--encoding", "rot13"],
    ),
    (
        "calibration for a method that reads none",
        2,
        "would ignore calibration",
        plain("--calibration", "pydoc"),
    ),
    ("`--device warp`", 2, "device 'warp' cannot be used", plain("--device", "warp")),
    (
        "a group size that compressed-tensors does not carry",
        5,
        "use one of 32, 48, 96",
        plain("--group-size", "36"),
    ),
    ("Conv1D in compressed-tensors", 5, "use --format dense", lambda b: quantize(zoo_model("gpt2"))),
    (
        "`--device meta`",
        2,
        "device 'meta' cannot be used",
        plain("--device", "meta"),
    ),
    ("a type and bits of its own", 2, "leave bits out, or the type", plain("--type", "q4_k", "--bits", "3")),
    (
        "a mixture and another type",
        2,
        "leave type out, or mixture",
        plain("--mixture", "q4_0", "--type", "q5_0"),
    ),
    (
        "a type with outliers",
        2,
        "has no place for outliers",
        plain("--method", "spqr", "--type", "q4_0", "--outliers", "1%"),
    ),
    (
        "an embedding of other bits in compressed-tensors",
        5,
        "give all the same bits",
        plain("--set", "embedding_bits=8"),
    ),
    (
        "an embedding in a layout of kernels",
        5,
        "read unquantized: leave embedding_bits out",
        plain("--set", "embedding_bits=4", "--format", "gptq"),
    ),
    (
        "an embedding that a pattern leaves out",
        2,
        "a skip pattern leaves it out: leave one",
        plain("--set", "embedding_bits=8", "--set", "skip=['*embed*']", "--format", "dense"),
    ),
    ("bits of an embedding that there are not", 2, "embedding_bits=7", plain("--set", "embedding_bits=7")),
    ("GGUF without a type", 5, "set type=q4_k", plain("--format", "gguf")),
    (
        "quantized inputs in a GGUF file",
        5,
        "leave act_bits and kv_bits out",
        plain("--type", "q4_0", "--act-bits", "8"),
    ),
    (
        "a `--like` that is no GGUF file",
        3,
        "is no whole GGUF file",
        lambda b: plain("--type", "q4_0", "--like", b.write("x.gguf", "GGUF"))(b),
    ),
    (
        "a `--like` that is not there",
        3,
        "a GGUF file is expected",
        plain("--type", "q4_0", "--like", "no.gguf"),
    ),
    ("`--like` for another format", 5, "leave --like", plain("--like", "no.gguf")),
    (
        "`--bits 4 --set bits=3`",
        2,
        "is given twice, by --bits and --set",
        plain("--bits", "4", "--set", "bits=3"),
    ),
    (
        "`--within soon`",
        2,
        "'soon' is no time",
        lambda box: quantize(zoo_model("llama"), "--set", "start=search", "--within", "soon"),
    ),
    (
        "`--within` without data",
        2,
        "has nothing to choose",
        plain("--within", "20m"),
    ),
    (
        "`--within` and what it chooses",
        2,
        "nsamples, seqlen set beside it",
        lambda box: ["quantize", zoo_model("llama"), *ON_DATA, "--within", "20m"],
    ),
]

AREA = area("Recipe and options", ROWS)
