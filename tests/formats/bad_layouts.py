"""What the layouts of GPTQ, AWQ and AutoRound do not carry."""

from bad_inputs.case import area
from bad_inputs.commands import ON_DATA, plain, quantize
from zoo import zoo_model

ROWS = [
    (
        "Conv1D in `gptq`",
        "gptq carries Linear layers only: use --format dense",
        lambda b: quantize(zoo_model("gpt2"), "--format", "gptq"),
    ),
    (
        "6 bits in `gptq`",
        "has 6 bits, and gptq carries 2, 3, 4, 8",
        plain("--format", "gptq", "--bits", "6"),
    ),
    ("3 bits in `awq`", "has 3 bits, and awq carries 4", plain("--format", "awq", "--bits", "3")),
    (
        "48 outputs of three bits in `gptq_v2`",
        "is 48x96, and gptq_v2 packs 3 bits for outputs in multiples of 32",
        plain("--format", "gptq_v2", "--bits", "3"),
    ),
    (
        "48 outputs in `auto-round`",
        "is 48x96, and auto-round packs 4 bits for outputs in multiples of 32",
        plain("--format", "auto-round"),
    ),
    (
        "scales in float32 in `gptq`",
        "has scales in float32, which clients of gptq round to float16: leave scale_dtype out",
        plain("--format", "gptq", "--set", "scale_dtype=float32"),
    ),
    (
        "a group size that fits no row in `awq`",
        "awq carries no shorter last group; use one of 32, 48, 96",
        plain("--format", "awq", "--group-size", "36"),
    ),
    (
        "two group sizes in `awq`",
        "awq carries one group size: set one group_size, use --format gptq_v2",
        plain("--format", "awq", "--set", 'layers={"*.up_proj": {"group_size": 48}}'),
    ),
    (
        "quantized inputs in `gptq`",
        "quantized activations are not carried by gptq",
        plain("--format", "gptq", "--set", "act_bits=8"),
    ),
    (
        "real zero points in `gptq_v2`",
        "has real zero points, which gptq_v2 does not carry",
        plain("--format", "gptq_v2", "--set", "round_zero=false"),
    ),
    (
        "an order of columns in `awq`",
        "awq does not carry: set order=group_aware or static_groups=true",
        lambda b: ["quantize", zoo_model("llama"), *ON_DATA, "--set", "order=act_order", "--format", "awq"],
    ),
    (
        "experts that are no Linears anywhere in `gptq`",
        "is kept in one tensor with the other experts by the checkpoints of GptOssForCausalLM, and gptq carries",
        lambda b: quantize(zoo_model("gpt_oss"), "--format", "gptq"),
    ),
]

AREA = area("Layouts of other clients", ROWS, code=5)
