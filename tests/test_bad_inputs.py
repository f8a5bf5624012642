"""Bad input: each gives one message, and leaves everything as it was.

Every case damages a copy of a trained model, or gives a command something wrong, and is run through the command
line's own `main`. The message must come alone, say what was found and what to do, and no file may appear or change.
All of them are listed in docs/errors.md, which this file writes:

    python tests/test_bad_inputs.py

At the end is what must work although it looks odd: blanks, other alphabets, links, other languages and clocks. A disk
that is full is in formats/test_folder.py, two runs on one output folder in engine/test_resume.py.
"""

import contextlib
import gzip
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import roundel
from roundel.cli.app import main
from roundel.errors import ModelError, OutputError
from roundel.formats.folder import check_target
from roundel.model.source import open_source
from roundel.system import seal
from zoo import zoo_model
from zoo.quantized import awq, fp8, gptq, int8, mxfp4, nf4

pytestmark = [pytest.mark.reports, pytest.mark.slow("runs more than 300 commands")]

ERRORS = Path(__file__).parents[1] / "docs" / "errors.md"
RTN = ("--method", "rtn", "--group-size", "32")
GPTQ = ("--method", "gptq", "--group-size", "32", "--set", "nsamples=4")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(99)
SHARD = "model-0000{}-of-00002.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.layers.0.input_layernorm.weight"
# A message says what to do, one way or another; or it lists what there is to choose from.
ADVICE = re.compile(
    r"\b(wanted|should|choose|pass|use|give|set|take|leave|narrow|must|known keys|may override|look like"
    r"|Possible options|auto, cpu, cuda)\b"
)

Change = Callable[[Any], object]


class Box:
    """A folder of its own for one case, and what cases need to damage a model in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def write(self, name: str, content: str | bytes) -> Path:
        """A file."""
        path = self / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def model(self, architecture: str = "llama", name: str = "model") -> Path:
        """A whole model."""
        return Path(shutil.copytree(zoo_model(architecture), self / name))

    def without(self, pattern: str) -> Path:
        """A model without some of its files."""
        model = self.model()
        for path in model.glob(pattern):
            path.unlink()
        return model

    def holding(self, name: str, content: str | bytes) -> Path:
        """A model of which one file has other content."""
        model = self.model()
        self.write(f"model/{name}", content)
        return model

    def config(self, **changes: Any) -> Path:
        """A model with changes in config.json; None takes a key out."""
        model = self.model()
        _edit(model / "config.json", lambda config: [_put(config, *change) for change in changes.items()])
        return model

    def tensors(self, change: Change, **config: Any) -> Path:
        """A model with changed tensors."""
        model = self.config(**config)
        _edit_tensors(model / WEIGHTS, change)
        return model

    def weights(self, change: Callable[[bytes], bytes]) -> Path:
        """A model with a changed weight file."""
        return self.holding(WEIGHTS, change((zoo_model("llama") / WEIGHTS).read_bytes()))

    def header(self, change: Change) -> Path:
        """A model with a changed header of its weight file."""

        def damage(content: bytes) -> bytes:
            (length,) = struct.unpack("<Q", content[:8])
            header = json.loads(content[8 : 8 + length])
            change(header)
            text = json.dumps(header).encode()
            return struct.pack("<Q", len(text)) + text + content[8 + length :]

        return self.weights(damage)

    def index(self, change: Change = lambda places: None) -> Path:
        """A model in two files, the second block in the second, with changes in the index's weight_map."""
        model = self.model()
        tensors = load_file(model / WEIGHTS)
        (model / WEIGHTS).unlink()
        places: dict[str, Any] = {}
        for number in (1, 2):
            file = SHARD.format(number)
            shard = {name: t for name, t in tensors.items() if (".layers.1." in name) == (number == 2)}
            save_file(shard, model / file, metadata={"format": "pt"})
            places |= dict.fromkeys(shard, file)
        change(places)
        self.write(f"model/{INDEX}", json.dumps({"metadata": {}, "weight_map": places}))
        return model

    def pickle(self, content: object) -> Path:
        """A model whose weights are pickled."""
        model = self.without(WEIGHTS)
        torch.save(content, model / "pytorch_model.bin")
        return model

    def narrow(self, vocabulary: int) -> Path:
        """A model that knows fewer tokens than its tokenizer gives."""

        def cut(tensors: dict[str, torch.Tensor]) -> None:
            for name in ("model.embed_tokens.weight", "lm_head.weight"):
                tensors[name] = tensors[name][:vocabulary].clone()

        return self.tensors(cut, vocab_size=vocabulary)

    def quantized(self, container: str = "compressed-tensors", name: str = "", content: str = "") -> Path:
        """What Roundel writes; one of its files, if named, has other content."""
        recipe = roundel.Recipe(method="rtn", group_size=32, format=container)
        roundel.quantize(zoo_model("llama"), recipe, output=self / "small")
        if name:
            self.write(f"small/{name}", content)
        return self / "small"

    def manifest(self, change: Change) -> Path:
        """What Roundel writes, with a changed manifest."""
        folder = self.quantized()
        _edit(folder / "roundel.json", change)
        return folder


def _edit(path: Path, change: Change) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def _edit_tensors(path: Path, change: Change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def _put(data: dict[str, Any], key: str, value: Any) -> None:
    if value is None:
        data.pop(key, None)
    else:
        data[key] = value


class Code:
    """What a pickle can do when it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("code-was-run",)


@dataclass(frozen=True)
class Case:
    """A bad input.

    Attributes:
        section: heading in the docs.
        words: the input, for the docs.
        code: exit code.
        message: a part of the message.
        arrange: makes the input; returns the command's arguments. `quantize` is given `-o out` if it has no output.
    """

    section: str
    words: str
    code: int
    message: str
    arrange: Callable[[Box], list[Any]]


def quantize(model: Path | str, *more: Any) -> list[Any]:
    """By round-to-nearest, which needs no data."""
    return ["quantize", model, *RTN, *more]


def plain(*more: Any) -> Callable[[Box], list[Any]]:
    """A whole model, and some option."""
    return lambda box: quantize(zoo_model("llama"), *more)


def recipe(text: str | bytes) -> Callable[[Box], list[Any]]:
    """A recipe file."""
    return lambda box: ["quantize", zoo_model("llama"), "--recipe", box.write("my.yaml", text)]


def _aliases(depth: int) -> str:
    """Some lines of YAML that are ten lists of ten lists and so on when they are written out."""
    return f"[&a{depth} {_aliases(depth - 1)}{f', *a{depth}' * 9}]" if depth else "x"


def calibrated(name: str, content: str | bytes | None = None, *more: Any) -> Callable[[Box], list[Any]]:
    """A calibration file."""

    def arrange(box: Box) -> list[Any]:
        source = name if content is None else box.write(name, content)
        length = () if "seqlen" in "".join(more) else ("--set", "seqlen=32")
        return ["quantize", zoo_model("llama"), *GPTQ, *length, "--calibration", source, *more]

    return arrange


def fielded(name: str, content: str, more: str) -> Callable[[Box], list[Any]]:
    """A calibration file with a field, or what else, behind its name."""
    return lambda box: calibrated(f"{box.write(name, content)}{more}")(box)


def saved(content: object) -> Callable[[Box], list[Any]]:
    """A calibration file that torch wrote."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return calibrated("ids.pt", buffer.getvalue())


def evaluated(box: Box, model: Path | str, *more: Any) -> list[Any]:
    """On some windows of 64 tokens."""
    text = box.write("text.txt", "The statement is executed when the block is left. " * 40)
    return ["eval", model, "--text", text, "--window", "64", "--limit", "2", *more]


def read(content: str | bytes) -> Callable[[Box], list[Any]]:
    """A text to evaluate on."""
    return lambda box: evaluated(box, zoo_model("llama"), "--text", box.write("held-out.txt", content))


def _table(content: str, more: str = "") -> Callable[[Box], list[Any]]:
    """A table to evaluate on."""
    return lambda box: [
        "eval",
        zoo_model("llama"),
        "--window",
        "64",
        "--text",
        f"{box.write('c.csv', content)}{more}",
    ]


def _moved_out(box: Box, place: str) -> list[Any]:
    """The second of two files lies outside the folder, and the index says so."""

    def change(places: dict[str, str]) -> None:
        places.update({name: place for name, file in places.items() if file == SHARD.format(2)})

    model = box.index(change)
    (model / SHARD.format(2)).rename(box / "x.safetensors")
    return quantize(model)


def _pickle_moved_out(box: Box) -> list[Any]:
    tensors = load_file(zoo_model("llama") / WEIGHTS)
    model = box.pickle(tensors)
    (model / "pytorch_model.bin").rename(box / "x.bin")
    index = {"weight_map": dict.fromkeys(tensors, "../x.bin")}
    box.write("model/pytorch_model.bin.index.json", json.dumps(index))
    return quantize(model, "--allow-pickle")


def _linked(box: Box, name: str, aim: str) -> Path:
    (box / name).symlink_to(aim)
    return box / name


def _weights_are(box: Box, link: str | None) -> list[Any]:
    """The weights are a link, or a folder."""
    model = box.without(WEIGHTS)
    if link is None:
        (model / WEIGHTS).mkdir()
    else:
        (model / WEIGHTS).symlink_to(link)
    return quantize(model)


def _one_shard(box: Box, content: bytes | None) -> list[Any]:
    model = box.index()
    if content is None:
        (model / SHARD.format(2)).unlink()
    else:
        (model / SHARD.format(2)).write_bytes(content)
    return quantize(model)


def _index_text(box: Box, text: str) -> list[Any]:
    model = box.index()
    (model / INDEX).write_text(text)
    return quantize(model)


def _retyped(dtype: torch.dtype) -> Callable[[Box], list[Any]]:
    return lambda box: quantize(box.tensors(lambda tensors: tensors.update({UP: tensors[UP].to(dtype)})))


def _filled(name: str, value: float) -> Callable[[Box], Path]:
    return lambda box: box.tensors(lambda tensors: tensors[name][3].fill_(value))


def _huge_norm(box: Box) -> Path:
    return box.tensors(lambda tensors: tensors[NORM].fill_(3e38))


def _templated(template: str) -> Callable[[Box], list[Any]]:
    def arrange(box: Box) -> list[Any]:
        model = box.holding("chat_template.jinja", template)
        source = box.write("chats.jsonl", '{"messages": [{"role": "user", "content": "x"}]}\n')
        return ["quantize", model, *GPTQ, "--set", "seqlen=32", "--calibration", source]

    return arrange


def _tokenizer_of_nothing(box: Box) -> list[Any]:
    model = box.model()
    _edit(model / "tokenizer.json", lambda data: data.update(model={"type": "Warp"}))
    return quantize(model)


def _packed(
    make: Callable[[Path, Path], Path], change: Change, of: str = "llama"
) -> Callable[[Box], list[Any]]:
    """A model that others quantized, with changed tensors."""

    def arrange(box: Box) -> list[Any]:
        model = make(zoo_model(of), box / "model")
        _edit_tensors(model / WEIGHTS, change)
        return quantize(model)

    return arrange


def _adapter_beside(box: Box) -> Path:
    """A whole model, and an adapter in the same folder."""
    model = box.model()
    for path in _adapter(box).glob("adapter*"):
        shutil.copyfile(path, model / path.name)
    return model


def _adapter(
    box: Box, kind: PeftConfig | None = None, *, name: str = "adapter", without: str = "", **config: Any
) -> Path:
    """A PEFT adapter with changes in its config."""
    base = AutoModelForCausalLM.from_pretrained(zoo_model("llama"))
    kind = kind or LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    get_peft_model(base, kind).save_pretrained(box / name)
    _edit(box / name / "adapter_config.json", lambda data: [_put(data, *change) for change in config.items()])
    if without:
        (box / name / without).unlink()
    return box / name


def _cut_adapter(box: Box) -> Path:
    adapter = _adapter(box)
    box.write("adapter/adapter_config.json", "{")
    return adapter


def _wide_reference(box: Box) -> list[Any]:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = torch.cat([tensors[name], tensors[name][:6]])

    return evaluated(box, zoo_model("llama"), "--reference", box.tensors(widen, vocab_size=1030))


FILES = [
    (
        "a weight file cut in its header",
        "its header claims",
        lambda b: quantize(b.weights(lambda c: c[:100])),
    ),
    ("a weight file cut in its data", "its tensors take", lambda b: quantize(b.weights(lambda c: c[:-1000]))),
    (
        "a weight file with something behind it",
        "belong to no tensor",
        lambda b: quantize(b.weights(lambda c: c + b"12")),
    ),
    ("an empty weight file", "the file has 0", lambda b: quantize(b.weights(lambda c: b""))),
    (
        "random bytes as weights",
        "its header claims",
        lambda b: quantize(b.weights(lambda c: bytes(range(256)) * 40)),
    ),
    (
        "a header that claims an exabyte",
        "claims 1152921504606846976 bytes",
        lambda b: quantize(b.weights(lambda c: struct.pack("<Q", 1 << 60) + c[8:])),
    ),
    (
        "a header that is no JSON",
        "its header is no JSON",
        lambda b: quantize(b.weights(lambda c: c[:8] + b"X" + c[9:])),
    ),
    (
        "two tensors on the same bytes",
        f"the bytes of {UP} are those of another tensor",
        lambda b: quantize(
            b.header(lambda h: h[UP].update(data_offsets=h[UP.replace("1", "0")]["data_offsets"]))
        ),
    ),
    (
        "a tensor behind the end of the file",
        "its tensors take",
        lambda b: quantize(
            b.header(lambda h: h[UP].update(data_offsets=[o + (1 << 30) for o in h[UP]["data_offsets"]]))
        ),
    ),
    (
        "a tensor of negative shape",
        "has the shape [-1, -96]",
        lambda b: quantize(b.header(lambda h: h[UP].update(shape=[-1, -96]))),
    ),
    (
        "a tensor with fewer bytes than its shape takes",
        "of shape [256, 95], has 98304 bytes",
        lambda b: quantize(b.header(lambda h: h[UP].update(shape=[256, 95]))),
    ),
    (
        "a type that nobody knows",
        "unknown type 'F12'",
        lambda b: quantize(b.header(lambda h: h[UP].update(dtype="F12"))),
    ),
    ("one of two weight files absent", "is not there", lambda b: _one_shard(b, None)),
    ("one of two weight files damaged", "cannot be read", lambda b: _one_shard(b, b"12")),
    (
        "a tensor in the index that the file does not hold",
        f"{UP} is not in",
        lambda b: quantize(b.index(lambda places: places.update({UP: SHARD.format(1)}))),
    ),
    (
        "a tensor that the index does not name",
        "one index of all files is wanted",
        lambda b: quantize(b.index(lambda places: places.pop(UP))),
    ),
    ("an index that is no JSON", "an index in JSON is wanted", lambda b: _index_text(b, "{")),
    ("an index without weight_map", "has no weight_map", lambda b: _index_text(b, '{"metadata": {}}')),
    ("an index that is a list", "has no weight_map", lambda b: _index_text(b, "[]")),
    (
        "a number for a file in the index",
        "in 5: the name of a file inside the folder is wanted",
        lambda b: quantize(b.index(lambda places: places.update({UP: 5}))),
    ),
    (
        "an index that points out of the folder",
        "Nothing was read",
        lambda b: _moved_out(b, "../x.safetensors"),
    ),
    ("an index with an absolute path", "Nothing was read", lambda b: _moved_out(b, str(b / "x.safetensors"))),
    (
        "a link to weights that are gone",
        "is a link to gone.safetensors",
        lambda b: _weights_are(b, "gone.safetensors"),
    ),
    ("a folder named as the weight file", "no weights in", lambda b: _weights_are(b, None)),
    ("no weights", "no weights in", lambda b: quantize(b.without(WEIGHTS))),
    ("pickled weights", "pass --allow-pickle", lambda b: quantize(b.pickle({UP: torch.ones(1)}))),
    (
        "pickled weights with code in them, and --allow-pickle",
        "nothing of it was run",
        lambda b: quantize(b.pickle({UP: Code()}), "--allow-pickle"),
    ),
    (
        "a damaged pickle, and --allow-pickle",
        "are damaged or hold more than tensors",
        lambda b: quantize(
            (m := b.pickle({}), (m / "pytorch_model.bin").write_bytes(b"1234"))[0], "--allow-pickle"
        ),
    ),
    ("an index of pickles that points out of the folder", "Nothing was read", _pickle_moved_out),
    ("random bytes as GGUF", "not a GGUF file", lambda b: quantize(b.write("m.gguf", bytes(range(256))))),
    (
        "a GGUF file cut short",
        "cannot be opened",
        lambda b: quantize(b.write("m.gguf", b"GGUF" + struct.pack("<IQQ", 3, 5, 5))),
    ),
    ("an empty GGUF file", "cannot be opened", lambda b: quantize(b.write("m.gguf", b""))),
]

MODEL = [
    ("no such folder", "no folder", lambda b: quantize(b / "nowhere")),
    ("an empty name", "the model's name is empty", lambda b: quantize("")),
    ("a text file", "is a file", lambda b: quantize(b.write("notes.txt", "x"))),
    ("config.json absent", "no config.json", lambda b: quantize(b.without("config.json"))),
    ("config.json cut", "a JSON file is wanted", lambda b: quantize(b.holding("config.json", "{"))),
    (
        "config.json of random bytes",
        "a JSON file is wanted",
        lambda b: quantize(b.holding("config.json", b"\xff\xfe")),
    ),
    ("config.json with a list", "holds list", lambda b: quantize(b.holding("config.json", "[1]"))),
    ("config.json without model_type", "names no model_type", lambda b: quantize(b.config(model_type=None))),
    (
        "a masked language model",
        "is no causal language model (BertForMaskedLM)",
        lambda b: quantize(b.config(model_type="bert", architectures=["BertForMaskedLM"])),
    ),
    (
        "an encoder and a decoder",
        "(T5ForConditionalGeneration, whose decoder reads what an encoder makes)",
        lambda b: quantize(b.config(model_type="t5", architectures=["T5ForConditionalGeneration"])),
    ),
    (
        "a model that sees, with an encoder of text",
        "(Florence2ForConditionalGeneration, whose decoder reads what an encoder makes)",
        lambda b: quantize(
            b.config(model_type="florence2", architectures=["Florence2ForConditionalGeneration"])
        ),
    ),
    (
        "several models in one",
        "(Qwen2_5OmniForConditionalGeneration, several models in one",
        lambda b: quantize(
            b.config(model_type="qwen2_5_omni", architectures=["Qwen2_5OmniForConditionalGeneration"])
        ),
    ),
    ("an unknown model_type", "unheard-of", lambda b: quantize(b.config(model_type="unheard-of"))),
    ("a width in words", "expected int, got str", lambda b: quantize(b.config(hidden_size="wide"))),
    ("no attention heads", "cannot be opened", lambda b: quantize(b.config(num_attention_heads=0))),
    ("no blocks", "no stack of decoder blocks", lambda b: quantize(b.config(num_hidden_layers=0))),
    ("an unknown activation", "cannot be built", lambda b: quantize(b.config(hidden_act="warp"))),
    ("a type that does not exist", "float17", lambda b: quantize(b.config(dtype="float17"))),
    (
        "fp8 in config.json",
        "is stored in torch.float8_e4m3fn",
        lambda b: quantize(b.config(dtype="float8_e4m3fn")),
    ),
    (
        "config.json of a model with another vocabulary",
        "has the shape (1024, 96), and by config.json (1000, 96)",
        lambda b: quantize(b.config(vocab_size=1000)),
    ),
    (
        "config.json of a model with other blocks",
        "has the shape (48, 96), and by config.json (72, 96)",
        lambda b: quantize(b.config(num_key_value_heads=3)),
    ),
    (
        "more blocks in config.json",
        "9 tensors are missing",
        lambda b: quantize(b.config(num_hidden_layers=3)),
    ),
    (
        "fewer blocks in config.json",
        "the model has 1 blocks",
        lambda b: quantize(b.config(num_hidden_layers=1)),
    ),
    (
        "a weight file named in config.json",
        "names its own weight file",
        lambda b: quantize(b.config(transformers_weights="other.safetensors")),
    ),
    (
        "generation_config.json cut",
        "generation_config.json cannot be read",
        lambda b: quantize(b.holding("generation_config.json", "{")),
    ),
    ("tokenizer.json cut", "the tokenizer in", lambda b: quantize(b.holding("tokenizer.json", "{"))),
    ("tokenizer.json of an unknown kind", "the tokenizer in", _tokenizer_of_nothing),
    (
        "tokenizer_config.json cut",
        "the tokenizer in",
        lambda b: quantize(b.holding("tokenizer_config.json", "{")),
    ),
    ("tokenizer.json absent", "the tokenizer in", lambda b: quantize(b.without("tokenizer.json"))),
    (
        "GPTQ in the config, and no integers in the files",
        "no weight in its files is",
        lambda b: quantize(b.config(quantization_config={"quant_method": "gptq", "bits": 4})),
    ),
    (
        "nonsense as quantization_config",
        "says 'four' of its quantization",
        lambda b: quantize(b.config(quantization_config="four")),
    ),
    (
        "a form of quantization that is not read",
        "quantized already (aqlm), in a form that is not read",
        lambda b: quantize(b.config(quantization_config={"quant_method": "aqlm"})),
    ),
    (
        "bits that make no sense",
        "bits=16: 2 to 8 is wanted",
        lambda b: quantize(b.config(quantization_config={"quant_method": "gptq", "bits": 16})),
    ),
    (
        "AWQ for one kernel",
        "of the version 'gemv'",
        lambda b: quantize(b.config(quantization_config={"quant_method": "awq", "version": "GEMV"})),
    ),
    (
        "AutoRound's own packing",
        "packing_format 'auto_round:llm_compressor' is not read",
        lambda b: quantize(
            b.config(
                quantization_config={
                    "quant_method": "auto-round",
                    "packing_format": "auto_round:llm_compressor",
                }
            )
        ),
    ),
    (
        "a block that makes no sense",
        "weight_block_size is 128",
        lambda b: quantize(b.config(quantization_config={"quant_method": "fp8", "weight_block_size": 128})),
    ),
    (
        "compressed-tensors without sense",
        "the quantization config of the model cannot be read",
        lambda b: quantize(
            b.config(quantization_config={"quant_method": "compressed-tensors", "config_groups": 4})
        ),
    ),
    ("FP8 without a scale", f"{UP}_scale_inv is missing", _packed(fp8, lambda t: t.pop(f"{UP}_scale_inv"))),
    (
        "FP8 with a scale too many",
        "no weight of 8 bits that it belongs to",
        _packed(fp8, lambda t: t.update({"lm_head.weight_scale_inv": torch.ones(1, 1)})),
    ),
    (
        "FP8 with scales of another block",
        f"{UP}_scale_inv has the shape (5, 5)",
        _packed(fp8, lambda t: t.update({f"{UP}_scale_inv": torch.ones(5, 5)})),
    ),
    (
        "GPTQ without zero points",
        "qzeros is missing",
        _packed(gptq, lambda t: t.pop(UP.replace("weight", "qzeros"))),
    ),
    (
        "GPTQ with scales of another shape",
        "scales has the shape (1, 7)",
        _packed(gptq, lambda t: t.update({UP.replace("weight", "scales"): torch.ones(1, 7)})),
    ),
    (
        "GPTQ with a group too many",
        "its g_idx names a group that is not there",
        _packed(gptq, lambda t: t[UP.replace("weight", "g_idx")].fill_(99)),
    ),
    (
        "AWQ without scales",
        "scales is missing",
        _packed(awq, lambda t: t.pop(UP.replace("weight", "scales"))),
    ),
    (
        "NF4 whose state is no JSON",
        "quant_state.bitsandbytes__nf4 cannot be read",
        _packed(
            lambda model, folder: nf4(model, folder, nested=False),
            lambda t: t[f"{UP}.quant_state.bitsandbytes__nf4"].fill_(0),
        ),
    ),
    (
        "LLM.int8() without the maxima of a weight's rows",
        "SCB is missing",
        _packed(int8, lambda t: t.pop(UP.replace("weight", "SCB"))),
    ),
    (
        "MXFP4 without the exponents",
        "experts.down_proj_scales is missing",
        _packed(mxfp4, lambda t: t.pop("model.layers.0.mlp.experts.down_proj_scales"), of="gpt_oss"),
    ),
    ("a compressed-tensors folder of Roundel's", "by Roundel", lambda b: quantize(b.quantized())),
    ("a folder in Roundel's container", "by Roundel", lambda b: quantize(b.quantized("roundel"))),
    ("a dense folder of Roundel's", "--allow-quantized", lambda b: quantize(b.quantized("dense"))),
    (
        "a base for what is no adapter",
        "is no adapter, so there is no base to name",
        lambda b: quantize(b.model(), "--base", b.model(name="other")),
    ),
    (
        "a whole model with an adapter beside it, as an adapter",
        "is no adapter, so there is no base to name",
        lambda b: quantize(_adapter_beside(b), "--base", b.model(name="other")),
    ),
    (
        "an adapter whose base is not there",
        "its base model cannot be opened",
        lambda b: quantize(_adapter(b, base_model_name_or_path="nobody/nothing")),
    ),
    (
        "an adapter that names no base",
        "an adapter that names no base model",
        lambda b: quantize(_adapter(b, base_model_name_or_path=None)),
    ),
    (
        "an adapter of another model",
        "does not fit",
        lambda b: quantize(_adapter(b), "--base", b.model("opt", "other")),
    ),
    (
        "an adapter without its weights",
        "no adapter_model.safetensors",
        lambda b: quantize(_adapter(b, without="adapter_model.safetensors")),
    ),
    (
        "an adapter for another task",
        "an adapter for the task SEQ_CLS",
        lambda b: quantize(_adapter(b, task_type="SEQ_CLS")),
    ),
    (
        "an adapter of an unknown kind",
        "cannot be merged",
        lambda b: quantize(_adapter(b, peft_type="TELEPATHY")),
    ),
    ("an adapter's config cut", "adapter_config.json cannot be read", lambda b: quantize(_cut_adapter(b))),
    (
        "an adapter in front of the text",
        "puts learned vectors in front of the text",
        lambda b: quantize(_adapter(b, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))),
    ),
    (
        "an adapter of an adapter",
        "is an adapter itself",
        lambda b: quantize(_adapter(b), "--base", _adapter(b, name="other")),
    ),
]

TENSORS = [
    (
        "FP8 with a scale that is not finite",
        7,
        "holds NaN or infinity",
        _packed(fp8, lambda t: t[f"{UP}_scale_inv"].fill_(float("nan"))),
    ),
    (
        "a tensor absent",
        3,
        f"1 tensors are missing in model ({UP})",
        lambda b: quantize(b.tensors(lambda tensors: tensors.pop(UP))),
    ),
    (
        "a tensor of another shape",
        3,
        f"{UP} of the source model cannot be read: it has the shape (7, 7)",
        lambda b: quantize(b.tensors(lambda tensors: tensors.update({UP: torch.ones(7, 7)}))),
    ),
    ("weights in fp8", 3, "has the type torch.float8_e4m3fn", _retyped(torch.float8_e4m3fn)),
    ("weights in int8", 3, "has the type I8", _retyped(torch.int8)),
    ("complex weights", 3, "has the type torch.complex64", _retyped(torch.complex64)),
    ("truth values as weights", 3, "has the type BOOL", _retyped(torch.bool)),
    (
        "NaN in a weight",
        7,
        f"{UP} of the source model holds NaN",
        lambda b: quantize(_filled(UP, float("nan"))(b)),
    ),
    (
        "infinity in a norm",
        7,
        f"{NORM} of the source model holds",
        lambda b: quantize(_filled(NORM, float("inf"))(b)),
    ),
    (
        "NaN in the embedding",
        7,
        "model.embed_tokens.weight of the source model holds NaN",
        lambda b: quantize(_filled("model.embed_tokens.weight", float("nan"))(b)),
    ),
    (
        "activations that overflow",
        7,
        "the output of model.layers.0 holds NaN or infinity",
        lambda b: ["quantize", _huge_norm(b), *GPTQ, "--set", "seqlen=32", "--calibration", "pydoc"],
    ),
    (
        "activations that overflow while the model writes its text",
        7,
        "cannot write its calibration text",
        lambda b: ["quantize", _huge_norm(b), *GPTQ, "--set", "seqlen=32"],
    ),
]

RECIPES = [
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
    ("bytes that are no text", 2, "a YAML file in UTF-8 is wanted", recipe(b"\xff\xfe\x00")),
    ("no such file", 2, "No such file", lambda b: ["quantize", zoo_model("llama"), "--recipe", "none.yaml"]),
    (
        "no such recipe",
        2,
        "no recipe 'gptq-w4'",
        lambda b: ["quantize", zoo_model("llama"), "--recipe", "gptq-w4"],
    ),
    ("`--set bits`", 2, "key=value is wanted", plain("--set", "bits")),
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
    (
        "`--bits 4 --set bits=3`",
        2,
        "is given twice, by --bits and --set",
        plain("--bits", "4", "--set", "bits=3"),
    ),
]

CALIBRATION = [
    ("no such file", "no file none.txt", calibrated("none.txt")),
    ("an empty folder", "no files in", lambda b: ((b / "d").mkdir(), calibrated(f"{b.folder}/d")(b))[1]),
    (
        "a folder with a picture in it",
        "it begins like a picture",
        lambda b: (b.write("d/a.txt", "text"), b.write("d/b.png", PICTURE), calibrated(f"{b.folder}/d")(b))[
            2
        ],
    ),
    (
        "a folder of rows and texts",
        "give those that are meant",
        lambda b: (b.write("d/a.jsonl", "[]"), b.write("d/README.md", "x"), calibrated(f"{b.folder}/d")(b))[
            2
        ],
    ),
    ("an empty file", "no text in", calibrated("c.txt", "")),
    ("a file of blanks", "no text in", calibrated("c.txt", " \n")),
    ("too little text", "give more text", calibrated("c.txt", "Too little text.")),
    ("bytes that are no text", "UTF-8 text", calibrated("c.txt", bytes(range(256)))),
    ("half a character", "Unicode text is wanted", calibrated("c.jsonl", '{"text": "abc \\ud800 def"}\n')),
    ("an id that the model does not know", "token id 5000", calibrated("c.jsonl", json.dumps([5000] * 500))),
    ("a negative id", "token id -5", calibrated("c.jsonl", json.dumps([-5] * 500))),
    ("an id without end", "a list of token ids", calibrated("c.jsonl", json.dumps([10**30] * 500))),
    ("truth values for ids", "a list of token ids", calibrated("c.jsonl", json.dumps([True] * 500))),
    (
        "other columns",
        "the columns title, body, which make no form",
        calibrated("c.jsonl", '{"title": "x", "body": "y"}\n'),
    ),
    (
        "columns that can be read in two ways",
        "c.jsonl:text (texts) or",
        calibrated("c.jsonl", '{"text": "x", "content": "y"}\n'),
    ),
    ("rows of two forms", "rows of one form", calibrated("c.jsonl", '{"text": "x"}\n{"messages": []}\n')),
    ("an unknown field", "no field body; it has", fielded("c.jsonl", '{"text": "x"}\n', ":body")),
    ("a field of a plain text", "has no field body", fielded("c.txt", "x", ":body")),
    ("a share of no samples", "0 samples of", fielded("c.txt", "x", ":0")),
    ("a share that is no number", "is no number of samples", fielded("c.txt", "x", ":body:many")),
    ("other shares than samples", "set nsamples=3,", fielded("c.txt", "x", ":3")),
    ("a share larger than its source", "give more text", fielded("c.txt", "a few words", ":3,pydoc:1")),
    ("a comma without a source behind it", "names no calibration data", fielded("c.txt", "x", ",")),
    ("the model's own text beside a file", "`self` stands alone", fielded("c.txt", "x", ",self")),
    ("a table without a header", "which make no form", calibrated("c.csv", "1,some words\n2,others\n")),
    ("a table of rows of other lengths", "line 3 has 1 fields", calibrated("c.csv", "id,text\n1,x\n2\n")),
    ("a table with an open quote", "is no row of a table", calibrated("c.csv", 'id,text\n1,"x\n')),
    ("a table with a column twice", "'text' twice", calibrated("c.csv", "text,text\nx,y\n")),
    ("an empty table", "no text in", calibrated("c.csv", "")),
    (
        "Latin-1 without saying so",
        "give its encoding",
        calibrated("c.txt", "Un café. ".encode("latin-1") * 99),
    ),
    (
        "UTF-16 without a mark",
        "NUL characters",
        calibrated("c.txt", ("some words " * 99).encode("utf-16-le")),
    ),
    (
        "half a character of UTF-16",
        "cannot be read",
        calibrated("c.txt", "a few words".encode("utf-16")[:-1]),
    ),
    ("an encoding without a file", "there are none", calibrated("pydoc", None, "--encoding", "latin-1")),
    ("a damaged .gz", "cannot be read", calibrated("c.txt.gz", b"1234")),
    ("half a .gz", "it ends too early", calibrated("c.txt.gz", gzip.compress(bytes(9999))[:-9])),
    ("a damaged .bz2", "cannot be read", calibrated("c.txt.bz2", b"1234")),
    ("a damaged .xz", "cannot be read", calibrated("c.txt.xz", b"1234")),
    ("a damaged .zst", "cannot be read", calibrated("c.txt.zst", b"1234")),
    ("gzip under another name", "it begins like gzip", calibrated("c.txt", gzip.compress(b"words " * 99))),
    (
        "a document under a name that says nothing",
        "begins like a PDF",
        calibrated("c.paper", b"%PDF-1.4\nwords"),
    ),
    ("bytes under a name that says nothing", "NUL characters", calibrated("c.data", b"words\0" * 99)),
    ("an archive", "unpack it", calibrated("c.tar.gz", gzip.compress(b"x"))),
    ("packed twice", "packed twice", calibrated("c.txt.gz.gz", gzip.compress(b"x"))),
    ("nothing in the column", "no text in", calibrated("c.jsonl", '{"text": null}\n')),
    ("a damaged line", "line 2 is no JSON", calibrated("c.jsonl", '{"text": "x"}\n{"text": \n')),
    ("JSON nested without end", "recursion depth", calibrated("c.json", "[" * 100_000)),
    (
        "a chat template for texts, and no chat template",
        "the tokenizer has none",
        calibrated("c.txt", "Some words. " * 99, "--set", "chat_template=true"),
    ),
    (
        "messages of other keys",
        "has the keys who",
        calibrated("c.jsonl", '{"messages": [{"who": "me"}]}\n'),
    ),
    (
        "a part of a message that is no text",
        "a part of the type image",
        calibrated("c.jsonl", '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}\n'),
    ),
    (
        "an unknown speaker",
        "from 'narrator'",
        calibrated("c.jsonl", '{"conversations": [{"from": "narrator", "value": "x"}]}\n'),
    ),
    (
        "chats that the template does not take",
        "do not go into",
        _templated("{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}"),
    ),
    ("a damaged chat template", "do not go into", _templated("{% for m in messages %}{{ m['content'] ")),
    (
        "samples longer than the model's positions",
        "set seqlen to 512",
        calibrated("pydoc", None, "--set", "seqlen=1024"),
    ),
    ("a damaged .parquet", "cannot be read", calibrated("c.parquet", bytes(range(256)))),
    ("a .pt with code in it", "UnpicklingError", saved([Code()])),
    ("a .pt of random bytes", "UnpicklingError", calibrated("c.pt", b"1234")),
    ("an empty .pt", "EOFError", calibrated("c.pt", b"")),
    ("a .pt of fractions", "a tensor of token ids", saved(torch.rand(10, 32))),
    ("a .pt of truth values", "a tensor of token ids", saved(torch.ones(10, 32, dtype=torch.bool))),
    (
        "a .pt of a sparse tensor",
        "a tensor of token ids",
        saved(torch.ones(10, 32, dtype=torch.int64).to_sparse()),
    ),
    (
        "a .pt of a tensor without data",
        "a tensor of token ids",
        saved(torch.ones(9, 9, dtype=torch.int64, device="meta")),
    ),
    (
        "a .pt of a mapping",
        "a tensor of token ids",
        saved({"input_ids": torch.ones(10, 32, dtype=torch.int64)}),
    ),
]

OUTPUT = [
    ("a file", "is a file", lambda b: plain("-o", b.write("file", "x"))(b)),
    ("a file, with a slash behind it", "is a file", lambda b: plain("-o", f"{b.write('file', 'x')}/")(b)),
    (
        "a folder that is not empty",
        "pass --overwrite",
        lambda b: plain("-o", b.write("old/x", "x").parent)(b),
    ),
    (
        "somebody's folder, with `--overwrite`",
        "thesis.tex, which roundel did not write",
        lambda b: plain("-o", b.write("mine/thesis.tex", "years").parent, "--overwrite")(b),
    ),
    (
        "an output with somebody's files in it, with `--overwrite`",
        "holds notes/, notes/a.txt, which roundel did not write",
        lambda b: plain("-o", b.quantized(name="notes/a.txt", content="mine"), "--overwrite")(b),
    ),
    (
        "an output of which a file was changed, with `--overwrite`",
        "config.json (changed since), which roundel did not write",
        lambda b: plain("-o", b.quantized(name="config.json", content="{}"), "--overwrite")(b),
    ),
    (
        "somebody's folder where the work goes",
        "with notes.txt in it, which roundel did not make",
        lambda b: (b.write(".out.roundel/notes.txt", "mine"), plain("-o", b / "out", "--restart")(b))[1],
    ),
    ("inside a file", "file is a file", lambda b: plain("-o", b.write("file", "x") / "out")(b)),
    ("`-o .`", "has no name of its own", plain("-o", ".")),
    ("`-o ..`", "has no name of its own", plain("-o", "..", "--overwrite")),
    ("an empty name", "has no name of its own", plain("-o", "")),
    ("`-o /`", "has no name of its own", plain("-o", "/", "--overwrite")),
    (
        "a link to a folder",
        "is a link to",
        lambda b: ((b / "a").mkdir(), plain("-o", _linked(b, "l", "a"))(b))[1],
    ),
    ("a link to nothing", "is a link to", lambda b: plain("-o", _linked(b, "l", "gone"))(b)),
    ("a name that is too long", "File name too long", lambda b: plain("-o", b / ("x" * 250))(b)),
    (
        "the model itself",
        "which it would replace",
        lambda b: quantize(m := b.model(), "-o", m, "--overwrite"),
    ),
    (
        "the folder around the model",
        "which it would replace",
        lambda b: quantize(b.model(name="models/llama"), "-o", b / "models", "--overwrite"),
    ),
    (
        "inside the model",
        "choose a folder outside of it",
        lambda b: quantize(m := b.model(), "-o", m / "small"),
    ),
]

EVAL = [
    ("no such text", 4, "no text none.txt", lambda b: evaluated(b, zoo_model("llama"), "--text", "none.txt")),
    ("an empty text", 4, "no text in", read("")),
    ("a text shorter than a window", 4, "a smaller --window", read("Few words.")),
    ("bytes that are no text", 4, "UTF-8 text is wanted", read(bytes(range(256)))),
    ("a table without a column of text", 4, "which make no form", _table("id,story\n1,x\n")),
    ("a table with two columns of text", 4, "(texts) or", _table("text,content\nx,y\n")),
    ("a number of samples of a text", 4, "FILE:FIELD is wanted", _table("text\nx\n", ":300")),
    (
        "an encoding that nobody knows",
        2,
        "is no encoding of text",
        lambda b: evaluated(b, zoo_model("llama"), "--encoding", "klingon"),
    ),
    (
        "windows longer than the model's positions",
        3,
        "exceed the 512 positions",
        lambda b: evaluated(b, zoo_model("llama"), "--window", "600"),
    ),
    (
        "windows longer than the reference's positions",
        3,
        "exceed the 32 positions",
        lambda b: evaluated(b, zoo_model("llama"), "--reference", b.config(max_position_embeddings=32)),
    ),
    ("windows of one token", 2, "'--window'", lambda b: evaluated(b, zoo_model("llama"), "--window", "1")),
    ("a reference with another vocabulary", 3, "a reference with the same vocabulary", _wide_reference),
    (
        "a reference that knows fewer tokens",
        3,
        "knows 0 to 199",
        lambda b: evaluated(b, zoo_model("llama"), "--reference", b.narrow(200)),
    ),
    (
        "a model that knows fewer tokens than its tokenizer",
        3,
        "knows 0 to 199",
        lambda b: evaluated(b, b.narrow(200)),
    ),
    (
        "no such reference",
        3,
        "no folder",
        lambda b: evaluated(b, zoo_model("llama"), "--reference", "./none"),
    ),
    ("a model without a tokenizer", 3, "without a tokenizer", lambda b: evaluated(b, b.without("token*"))),
    ("a damaged tokenizer", 3, "the tokenizer in", lambda b: evaluated(b, b.holding("tokenizer.json", "{"))),
    ("NaN in the model", 7, "hold NaN or infinity", lambda b: evaluated(b, _filled(UP, float("nan"))(b))),
    (
        "a method of quantization that nobody knows",
        3,
        "quantized by warp",
        lambda b: evaluated(b, b.config(quantization_config={"quant_method": "warp"})),
    ),
    (
        "a damaged folder in Roundel's container",
        3,
        "cannot be read",
        lambda b: evaluated(b, b.quantized("roundel", "roundel.safetensors", "12")),
    ),
    (
        "figures into a folder that is not there",
        6,
        "an existing folder",
        lambda b: evaluated(b, zoo_model("llama"), "--json", "no/f.json"),
    ),
    (
        "figures into somebody's file",
        6,
        "is no file of figures as roundel wrote it",
        lambda b: evaluated(b, zoo_model("llama"), "--json", b.write("f.json", "{}")),
    ),
]


def asked(box: Box, tasks: str, *more: Any) -> list[Any]:
    """Tasks, of documents in the folder `data`."""
    (box / "data").mkdir(exist_ok=True)
    return ["eval", zoo_model("llama"), "--tasks", tasks, "--data-dir", box / "data", *more]


def _piqa(rows: str, labels: str = "0\n1\n") -> Callable[[Box], list[Any]]:
    """A data set in the form in which it was published."""

    def arrange(box: Box) -> list[Any]:
        box.write("data/piqa/dev.jsonl", rows)
        box.write("data/piqa/dev-labels.lst", labels)
        return asked(box, "piqa")

    return arrange


QUESTION = '{"goal": "open a door", "sol1": "pull it", "sol2": "paint it"}\n'

TASKS = [
    ("a task that nobody knows", 2, "no task 'piqua'; close to it: piqa", lambda b: asked(b, "piqua")),
    ("commas without names", 2, "names none", lambda b: asked(b, ",")),
    (
        "no such folder of data",
        4,
        "is no folder",
        lambda b: ["eval", zoo_model("llama"), "--tasks", "piqa", "--data-dir", b / "none"],
    ),
    ("a folder without the task's documents", 4, "no documents of piqa", lambda b: asked(b, "piqa")),
    ("documents without a column", 4, "no sol2", _piqa(QUESTION.replace("sol2", "answer") * 2)),
    ("documents that are no JSON", 4, "line 2 is no JSON", _piqa(QUESTION + "what?\n")),
    ("an empty file of documents", 4, "holds no document", _piqa("", "")),
    ("fewer labels than documents", 4, "has 2 labels for 3 documents", _piqa(QUESTION * 3)),
    ("a label that is no answer", 4, "line 2: '7'", _piqa(QUESTION * 2, "0\n7\n")),
    (
        "examples where there are only the evaluated documents",
        4,
        "a split for examples beside them is wanted",
        lambda b: [*_piqa(QUESTION * 2)(b), "--fewshot", "3"],
    ),
    (
        "examples without a task",
        2,
        "are for tasks",
        lambda b: evaluated(b, zoo_model("llama"), "--fewshot", "3"),
    ),
    (
        "an unknown task beside a text, which would be measured first",
        2,
        "no task 'piqua'",
        lambda b: evaluated(b, zoo_model("llama"), "--tasks", "piqua"),
    ),
    (
        "less than one request in a pass",
        2,
        "'--batch-size'",
        lambda b: [*_piqa(QUESTION * 2)(b), "--batch-size", "0"],
    ),
]


def against(box: Box, *more: Any) -> list[Any]:
    """A model against itself."""
    return evaluated(box, zoo_model("llama"), "--reference", zoo_model("llama"), *more)


def _damaged_cache(box: Box) -> list[Any]:
    """The original's predictions were kept, and one of their files was cut since."""
    code, err, _ = run(*against(box, "--cache", box / "cache"))
    assert code == 0, err
    for path in (box / "cache").rglob("*.safetensors"):
        path.write_bytes(b"12")
    return against(box, "--cache", box / "cache")


KEPT = [
    ("no likeliest tokens", 2, "'--top-k'", lambda b: against(b, "--top-k", "0")),
    (
        "predictions into a file, without an original",
        2,
        "pass --reference",
        lambda b: evaluated(b, zoo_model("llama"), "--cache", "kept"),
    ),
    (
        "a file for the folder of predictions",
        6,
        "is no folder",
        lambda b: against(b, "--cache", b.write("kept", "mine")),
    ),
    ("kept predictions that were cut", 6, "take it away, and it is computed anew", _damaged_cache),
    (
        "single predictions into a folder that is not there",
        6,
        "an existing folder",
        lambda b: against(b, "--per-token", "no/t.parquet"),
    ),
    (
        "single predictions of tasks",
        2,
        "per_token writes the predictions of texts",
        lambda b: [*_piqa(QUESTION * 2)(b), "--per-token", b / "t.parquet"],
    ),
    (
        "single predictions into somebody's file",
        6,
        "is no file of predictions as roundel wrote it",
        lambda b: against(b, "--per-token", b.write("t.parquet", "mine")),
    ),
    (
        "single predictions into a folder",
        6,
        "the name of a file",
        lambda b: against(b, "--per-token", b.folder),
    ),
]


def compared(box: Box, *models: Any, reference: Any = None, more: tuple[Any, ...] = ()) -> list[Any]:
    """On two windows."""
    text = box.write("text.txt", "The statement is executed when the block is left. " * 40)
    page = () if "-o" in more else ("-o", box / "page.html")
    original = reference or zoo_model("llama")
    few = ("--text", text, "--window", "64", "--limit", "2")
    return ["compare", *models, "--reference", original, *few, *page, *more]


COMPARE = [
    ("a model twice", 2, "is given twice", lambda b: compared(b, b.quantized(), b / "small")),
    ("no such model among them", 3, "no folder", lambda b: compared(b, b.quantized(), "./none")),
    ("no such original", 3, "no folder", lambda b: compared(b, zoo_model("llama"), reference="./none")),
    (
        "a model with another vocabulary",
        3,
        "knows 0 to 199",
        lambda b: compared(b, b.narrow(200)),
    ),
    (
        "an unknown task",
        2,
        "no task 'piqua'",
        lambda b: compared(b, zoo_model("llama"), more=("--tasks", "piqua")),
    ),
    (
        "a page that is there already",
        6,
        "pass --overwrite",
        lambda b: compared(
            b,
            zoo_model("llama"),
            more=(
                "-o",
                b.write("mine.html", seal.sealed(seal.unsealed("comparison").encode(), "comparison")),
            ),
        ),
    ),
    (
        "somebody's page, with `--overwrite`",
        6,
        "is no comparison as roundel wrote it",
        lambda b: compared(b, zoo_model("llama"), more=("-o", b.write("mine.html", "mine"), "--overwrite")),
    ),
    (
        "figures into somebody's file",
        6,
        "is no file of figures as roundel wrote it",
        lambda b: compared(b, zoo_model("llama"), more=("--json", b.write("mine.json", "{}"))),
    ),
    (
        "a page into a folder that is not there",
        6,
        "an existing folder",
        lambda b: compared(b, zoo_model("llama"), more=("-o", "no/page.html")),
    ),
    (
        "no such text",
        4,
        "no text none.txt",
        lambda b: compared(b, zoo_model("llama"), more=("--text", "none.txt")),
    ),
]

REPORT = [
    ("no such folder", 3, "no roundel.json in none", lambda b: ["report", b / "none"]),
    ("a model that roundel did not write", 3, "roundel.json", lambda b: ["report", b.model()]),
    (
        "somebody's page in the page's place",
        6,
        "is no page of a run as roundel wrote it",
        lambda b: ["report", b.quantized(name="report.html", content="mine")],
    ),
    (
        "a report that is no JSON",
        3,
        "report.json cannot be read",
        lambda b: ["report", b.quantized(name="report.json", content="{")],
    ),
    (
        "a report of something else",
        3,
        "something else than a report",
        lambda b: ["report", b.quantized(name="report.json", content='{"a": 1}')],
    ),
    (
        "a report that is a list",
        3,
        "something else than a report",
        lambda b: ["report", b.quantized(name="report.json", content="[]")],
    ),
]

HELD_OUT = [
    ("no such text", 4, "no text none.txt", plain("--held-out", "none.txt")),
    (
        "bytes that are no text",
        4,
        "UTF-8 text is wanted",
        lambda b: quantize(zoo_model("llama"), "--held-out", b.write("t.txt", bytes(range(256)))),
    ),
]

ON_DATA = [*GPTQ, "--set", "seqlen=32", "--calibration", "pydoc"]

BLOCKS = [
    (
        "a name that no module has",
        3,
        "is named like 'transformer.h': the name of the blocks' list",
        plain("--blocks", "transformer.h"),
    ),
    (
        "modules without Linears",
        3,
        "no module of LlamaForCausalLM that holds Linears is named like",
        plain("--blocks", "model.embed_tokens"),
    ),
    (
        "modules that are no chain",
        3,
        "is not fed with the output of the block before it",
        lambda b: ["quantize", zoo_model("llama"), *ON_DATA, "--blocks", "model.layers.*.mlp.*_proj"],
    ),
]

INSPECT = [
    ("no such folder", 3, "no folder", lambda b: ["inspect", "./none"]),
    ("an empty folder", 3, "no config.json", lambda b: ["inspect", (b.write("none/x", ""), b / "none")[1]]),
    (
        "a recipe for a folder that is quantized already",
        2,
        "is quantized already, so there is nothing for a recipe to decide",
        lambda b: ["inspect", b.quantized(), "--method", "rtn"],
    ),
    (
        "a pattern that matches no Linear",
        2,
        "matches no Linear",
        lambda b: ["inspect", zoo_model("llama"), "--set", "skip=['*.wq']"],
    ),
    (
        "blocks of a name that nothing has",
        3,
        "module lists found: model.layers (2 modules)",
        lambda b: ["inspect", zoo_model("llama"), "--blocks", "transformer.h.*"],
    ),
    (
        "a manifest that is no JSON",
        3,
        "a JSON file is wanted",
        lambda b: ["inspect", b.quantized(name="roundel.json", content="{")],
    ),
    (
        "a manifest that is a list",
        3,
        "it holds list",
        lambda b: ["inspect", b.quantized(name="roundel.json", content="[]")],
    ),
    (
        "a manifest without layers",
        3,
        "layers: field required",
        lambda b: ["inspect", b.manifest(lambda m: m.pop("layers"))],
    ),
    (
        "words for a figure of a layer",
        3,
        "layers.0.error: input should be a valid number",
        lambda b: ["inspect", b.manifest(lambda m: m["layers"][0].update(error="small"))],
    ),
    (
        "a layer of a later version",
        3,
        "which this roundel does not know",
        lambda b: ["inspect", b.manifest(lambda m: m["layers"][0].update(colour=5))],
    ),
    (
        "a model of no parameters",
        3,
        "greater than 0",
        lambda b: ["inspect", b.manifest(lambda m: m["original"].update(parameters=0))],
    ),
    (
        "weights absent",
        3,
        "no weights in",
        lambda b: ["inspect", (q := b.quantized(), (q / WEIGHTS).unlink())[0]],
    ),
    ("weights cut", 3, "cannot be read", lambda b: ["inspect", b.quantized(name=WEIGHTS, content="12")]),
]

GENERATE = [
    ("no such model", 3, "no folder", lambda b: ["generate", "./none", "x"]),
    ("an empty prompt", 3, "the prompt has no tokens", lambda b: ["generate", zoo_model("llama"), ""]),
    (
        "a model that knows fewer tokens",
        3,
        "knows 0 to 99",
        lambda b: ["generate", b.narrow(100), "The word"],
    ),
    (
        "more tokens than the model's positions",
        3,
        "exceed the 512 positions",
        lambda b: ["generate", zoo_model("llama"), "The", "--max-new-tokens", "600"],
    ),
]


def swept(names: str, *more: Any, model: str | None = None) -> Callable[[Box], list[Any]]:
    """Several recipes."""
    return lambda box: ["sweep", model or zoo_model("llama"), "--recipes", names, "-o", "all", *more]


SWEEP = [
    ("no recipes", 2, "--recipes ', ' names none", swept(", ")),
    ("an unknown recipe among them", 2, "no recipe 'none'", swept("rtn-w4g128,none")),
    ("a recipe twice", 2, "rtn-w4g128 is given twice", swept("rtn-w4g128,rtn-w4g128")),
    (
        "a key that one of them ignores",
        2,
        "would ignore nsamples",
        swept("gptq-w4g128,rtn-w4g128", "--set", "nsamples=4"),
    ),
    ("no such model", 3, "no folder ./none", swept("rtn-w4g128", model="./none")),
    (
        "a recipe's folder with something else in it",
        6,
        "all/rtn-w4g128 exists and is not empty",
        lambda b: (b.write("all/rtn-w4g128/notes.txt", "mine"), swept("rtn-w4g128")(b))[1],
    ),
    (
        "a recipe's folder with something else in it, with `--overwrite`",
        6,
        "all/rtn-w4g128 holds notes.txt, which roundel did not write",
        lambda b: (b.write("all/rtn-w4g128/notes.txt", "mine"), swept("rtn-w4g128", "--overwrite")(b))[1],
    ),
    (
        "a recipe's folder with another result",
        6,
        "holds the result of another recipe",
        lambda b: (shutil.copytree(b.quantized(), b / "all/rtn-w4g128"), swept("rtn-w4g128")(b))[1],
    ),
    (
        "calibration that is not there",
        4,
        "no file none.txt",
        swept("gptq-w4g128", "--calibration", "none.txt", "--set", "seqlen=32"),
    ),
]

RANKS = [
    ("no process", 2, "--nproc 0: 1 process or more", plain("--nproc", "0")),
    (
        "less than none",
        2,
        "--nproc -2: 1 process or more",
        lambda b: evaluated(b, zoo_model("llama"), "--nproc", "-2"),
    ),
    ("no number", 2, "Invalid value for '--nproc'", plain("--nproc", "all")),
]


def _cases() -> Iterator[Case]:
    sections: list[tuple[str, int | None, list[Any]]] = [
        ("Weight files", 3, FILES),
        ("The model", 3, MODEL),
        ("Its tensors", None, TENSORS),
        ("Recipe and options", None, RECIPES),
        ("`--blocks`", None, BLOCKS),
        ("Calibration data", 4, CALIBRATION),
        ("The output folder", 6, OUTPUT),
        ("`roundel eval`", None, EVAL),
        ("`--tasks` and `--data-dir`", None, TASKS),
        ("`--cache`, `--top-k` and `--per-token`", None, KEPT),
        ("`roundel compare`", None, COMPARE),
        ("`roundel report`", None, REPORT),
        ("`--held-out`", None, HELD_OUT),
        ("`roundel inspect`", None, INSPECT),
        ("`roundel generate`", None, GENERATE),
        ("`roundel sweep`", None, SWEEP),
        ("`--nproc`", None, RANKS),
    ]
    for section, code, rows in sections:
        for words, *row in rows:
            yield Case(section, words, *([] if code is None else [code]), *row)


CASES = list(_cases())


@dataclass(frozen=True)
class Said:
    """What a command left: exit code, its lines on stderr, what it printed, and files that came, went or changed."""

    code: int
    lines: list[str]
    printed: str
    changed: list[str]

    @property
    def message(self) -> str:
        """The line with the error."""
        return re.sub("^[eE]rror: ", "", self.lines[-1])


def run(*arguments: Any) -> tuple[int, str, str]:
    """A command in this process, through `main` with its error handling: exit code, stderr, stdout."""
    err, out, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["roundel", *map(str, arguments)]
    try:
        with (
            contextlib.redirect_stderr(err),
            contextlib.redirect_stdout(out),
            pytest.raises(SystemExit) as leaving,
        ):
            main()
    finally:
        sys.argv = before
    return int(leaving.value.code or 0), err.getvalue(), out.getvalue()


@cache
def outcome(case: Case) -> Said:
    """Run a case in a folder of its own, whose name is left out of what it says."""
    with TemporaryDirectory() as name, contextlib.chdir(name):
        box = Box(Path(name).resolve())
        arguments = case.arrange(box)
        if arguments[0] == "quantize" and "-o" not in arguments:
            arguments += ["-o", box / "out"]
        before = contents(box.folder)
        code, err, out = run(*arguments)
        after = contents(box.folder)
        changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
        return Said(code, _neutral(err, box.folder).splitlines(), out, changed)


def contents(folder: Path) -> dict[str, bytes | str | None]:
    """All that is below a folder: bytes of files, aims of links, nothing of folders."""
    return {
        str(path.relative_to(folder)): (
            str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        )
        for path in folder.rglob("*")
    }


def _neutral(text: str, folder: Path) -> str:
    """Without what differs between machines, runs and versions."""
    text = text.replace(f"'{folder}/", "'/FOLDER/")
    for place in (folder, zoo_model("llama").parent):
        text = text.replace(f"{place}/", "").replace(str(place), "FOLDER")
    text = re.sub(r"known keys: .*", "known keys: ...", text)
    text = re.sub(r"one of autoround.* is wanted", "one of ... is wanted", text)
    text = re.sub(r"\(Expected one of .*\)", "(...)", text)
    text = re.sub(r"\.unfinished-\w+", ".unfinished-...", text)
    text = re.sub(
        r"\b[0-9a-f]{32}\b", "0123...", text
    )  # of trained weights, and training differs between CPUs
    return re.sub(r"x{9,}", "xxx...", text)


def _name(case: Case) -> str:
    return f"{case.section}: {case.words}".replace("`", "")


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_bad_input_is_one_message_and_changes_nothing(case: Case) -> None:
    said = outcome(case)
    assert said.code == case.code, said.lines
    assert [line for line in said.lines if re.match("[eE]rror: ", line)] == said.lines[-1:]
    assert case.message in said.message
    assert ADVICE.search(said.message)
    assert "Traceback" not in "\n".join(said.lines)
    assert said.printed == ""
    assert said.changed == []


def errors_page() -> str:
    """docs/errors.md, from running every case."""
    lines = [
        "# What bad input gives",
        "",
        "Every command leaves with one message, which says what was found, what is wanted and what to do, and with the",
        "exit code of its kind; no output folder appears, and an existing one keeps its bytes. Each row is tested; "
        "written by",
        "",
        "    python tests/test_bad_inputs.py",
        "",
        "Exit codes: 2 recipe and options, 3 model, 4 calibration data or text, 5 format, 6 output folder, 7 NaN or "
        "infinity, 8 another rank is gone, 130 stopped.",
    ]
    for section in dict.fromkeys(case.section for case in CASES):
        lines += ["", f"## {section}", "", "| input | code | message |", "|---|---|---|"]
        for case in CASES:
            if case.section == section:
                said = outcome(case)
                lines.append(f"| {case.words} | {said.code} | {_cell(said.message)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return re.sub(r"([|*<\\_`\[\]])", r"\\\1", text)


def test_the_page_of_errors_is_that_of_this_code() -> None:
    assert ERRORS.read_text(encoding="utf-8") == errors_page(), (
        "python tests/test_bad_inputs.py writes it anew"
    )


# What must work although it looks odd.


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The weights that an ordinary run writes."""
    out = tmp_path_factory.mktemp("straight") / "out"
    code, err, _ = run(*quantize(zoo_model("llama"), "-o", out))
    assert code == 0, err
    return written(out)


def written(out: Path) -> dict[str, bytes]:
    """All files but the manifest and the report, which have the time in them."""
    timed = ("roundel.json", "report.json", "report.html")
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name not in timed}


def works(model: Path | str, out: Path | str) -> None:
    code, err, _ = run(*quantize(model, "-o", out))
    assert code == 0, err


@pytest.mark.parametrize(
    "name", ["with blanks", "modèle", "模型", "a'b\"c", "50% & more; #1", "-dash", "dots.v1.0"]
)
def test_names_of_all_kinds(name: str, straight: dict[str, bytes], tmp_path: Path) -> None:
    shutil.copytree(zoo_model("llama"), tmp_path / name)
    works(tmp_path / name, tmp_path / f"{name} out")
    assert written(tmp_path / f"{name} out") == straight
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, f"{name} out"])


def test_relative_paths_and_slashes(straight: dict[str, bytes], tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(zoo_model("llama"), tmp_path / "model")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    works("../model/", "deep/er/out/")
    assert written(tmp_path / "here" / "deep" / "er" / "out") == straight


def test_the_home_folder(straight: dict[str, bytes], tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(zoo_model("llama"), tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    works("~/model", "~/out")
    assert written(tmp_path / "out") == straight


def test_links(straight: dict[str, bytes], tmp_path: Path) -> None:
    """To the model, to its weights as in the hub's cache, and to the folder of the output."""
    store = tmp_path / "store"
    shutil.copytree(zoo_model("llama"), store / "model")
    (store / "model" / WEIGHTS).rename(store / "blob")
    (store / "model" / WEIGHTS).symlink_to("../blob")
    (store / "outputs").mkdir()
    (tmp_path / "model").symlink_to(store / "model")
    (tmp_path / "outputs").symlink_to(store / "outputs")
    works(tmp_path / "model", tmp_path / "outputs" / "out")
    assert written(store / "outputs" / "out") == straight


def test_a_checkpoint_in_linked_shards(straight: dict[str, bytes], tmp_path: Path) -> None:
    model = Box(tmp_path).index()
    (model / SHARD.format(2)).rename(tmp_path / "blob")
    (model / SHARD.format(2)).symlink_to("../blob")
    works(model, tmp_path / "out")
    assert written(tmp_path / "out") == straight


def test_double_precision_gives_the_same_integers(straight: dict[str, bytes], tmp_path: Path) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.double() for name, tensor in tensors.items()})

    model = Box(tmp_path).tensors(widen, dtype="float64")
    works(model, tmp_path / "out")
    (tmp_path / "straight.safetensors").write_bytes(straight[WEIGHTS])
    wanted, found = load_file(tmp_path / "straight.safetensors"), load_file(tmp_path / "out" / WEIGHTS)
    assert all(torch.equal(found[name], codes) for name, codes in wanted.items() if name.endswith("_packed"))
    assert found["model.norm.weight"].dtype == torch.float64


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "TZ": "Pacific/Kiritimati"},
        {"LC_ALL": "C", "TZ": "America/St_Johns"},
        {"PYTHONIOENCODING": "ascii"},
    ],
    ids=["Turkish", "C", "ASCII"],
)
def test_other_languages_and_clocks(
    environment: dict[str, str], straight: dict[str, bytes], tmp_path: Path
) -> None:
    model = shutil.copytree(zoo_model("llama"), tmp_path / "modèle")
    command = [sys.executable, "-m", "roundel", *quantize(model, "-o", tmp_path / "sortie é")]
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert written(tmp_path / "sortie é") == straight


# What the table cannot show.


@pytest.fixture
def sealed(tmp_path: Path) -> Iterator[Path]:
    """A file system that cannot be written."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a read-only file system is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_file_system_that_cannot_be_written(sealed: Path) -> None:
    code, err, _ = run(*quantize(zoo_model("llama"), "-o", sealed / "out"))
    assert code == 6
    assert "cannot be written (Read-only file system): choose another folder" in err
    assert "Traceback" not in err


def test_a_failed_overwrite_keeps_the_old_folder(tmp_path: Path) -> None:
    box = Box(tmp_path)
    old = box.quantized()
    before = contents(old)
    code, _, _ = run(*quantize(_filled(UP, float("nan"))(box), "-o", old, "--overwrite"))
    assert (code, contents(old)) == (7, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "small"]


def test_the_source_is_never_in_the_way(tmp_path: Path) -> None:
    model = Box(tmp_path).model(name="models/llama")
    (tmp_path / "link").symlink_to(model)
    for target in (model, model.parent, tmp_path / "models" / ".." / "models" / "llama"):
        for source in (model, tmp_path / "link", model / WEIGHTS):
            with pytest.raises(OutputError, match="which it would replace"):
                check_target(target, True, source)
    with pytest.raises(OutputError, match="inside the model"):
        check_target(model / "small", False, tmp_path / "link")
    check_target(tmp_path / "models" / "small", False, model)
    check_target(tmp_path / "out", False, Path("some-owner/some-model"))


def test_absolute_and_climbing_paths_are_refused_before_anything_is_read(tmp_path: Path, monkeypatch) -> None:
    """Neither the file outside nor those inside."""
    opened: list[str] = []
    monkeypatch.setattr("roundel.model.checkpoint.read_header", lambda path: opened.append(str(path)) or {})
    for number, place in enumerate(["/etc/passwd", "a/../../x", "C:\\x", "\\\\host\\x", "..", "."]):
        model = Box(tmp_path / str(number)).index(lambda places, place=place: places.update({UP: place}))
        with pytest.raises(ModelError, match="inside the folder"):
            open_source(str(model))
    assert opened == []


def test_nothing_unpickles_more_than_tensors() -> None:
    """Every torch.load says weights_only, and pickle itself gives nothing but the name of its error."""
    for path in (Path(roundel.__file__).parent).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert all("weights_only=True" in call for call in re.findall(r"torch\.load\([^\n]*", text)), path
        imports = re.findall(
            r"^\s*(?:import|from) .*(?:pickle|dill|joblib|shelve|marshal).*$", text, re.MULTILINE
        )
        assert set(imports) <= {"from pickle import UnpicklingError"}, path
        assert "yaml.load(" not in text.replace("yaml.load(text, _Loader)", ""), path


if __name__ == "__main__":
    ERRORS.write_text(errors_page(), encoding="utf-8")
