"""Folders that are not exported, and formats that do not hold them."""

import roundel
from bad_inputs.box import Box
from bad_inputs.case import area
from zoo import zoo_model


def _written(box: Box, **settings: object) -> object:
    recipe = roundel.Recipe.create(**{"method": "rtn", "group_size": 32, "format": "roundel", **settings})
    roundel.quantize(zoo_model("llama"), recipe, output=box / "small", held_out=None)
    return box / "small"


def _export(folder: object, box: Box, format: str = "gptq", *more: object) -> list[object]:
    return ["export", folder, "-o", box / "out", "--format", format, *more]


def _changed(box: Box) -> object:
    folder = box.quantized()
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    return folder


def _without_weights(box: Box) -> object:
    folder = box.quantized()
    (folder / "model.safetensors").unlink()
    return folder


ROWS = [
    ("no such folder", 3, "no folder none", lambda b: _export("none", b)),
    ("a model that roundel did not write", 3, "no roundel.json in model", lambda b: _export(b.model(), b)),
    (
        "a manifest that was changed",
        3,
        "holds a roundel.json that was changed since",
        lambda b: _export(b.manifest(lambda m: m.update(seconds=0)), b),
    ),
    (
        "weights that were changed",
        3,
        "model.safetensors of small was changed since",
        lambda b: _export(_changed(b), b),
    ),
    (
        "weights that are gone",
        3,
        "model.safetensors of small is missing",
        lambda b: _export(_without_weights(b), b),
    ),
    (
        "the format that it has",
        5,
        "is in the format compressed-tensors already: copy it",
        lambda b: _export(b.quantized(), b, "compressed-tensors"),
    ),
    (
        "an output that is not empty",
        6,
        "pass --overwrite",
        lambda b: ["export", b.quantized(), "-o", b.write("old/x", "x").parent, "--format", "gptq"],
    ),
    (
        "an output inside of it",
        6,
        "is inside the model",
        lambda b: ["export", f := b.quantized(), "-o", f / "out", "--format", "gptq"],
    ),
    (
        "the folder itself as the output",
        6,
        "which it would replace",
        lambda b: ["export", f := b.quantized(), "-o", f, "--format", "gptq", "--overwrite"],
    ),
    (
        "integer zero points into a GGUF file that does not hold them",
        5,
        "set type=q4_1, or sym=true",
        lambda b: _export(b.quantized(), b, "gguf"),
    ),
    (
        "3 bits into a GGUF file",
        5,
        "set type=q3_k for example",
        lambda b: _export(_written(b, bits=3), b, "gguf"),
    ),
    (
        "6 bits into `awq`",
        5,
        "has 6 bits, and awq carries 4: set bits",
        lambda b: _export(_written(b, bits=6), b, "awq"),
    ),
    (
        "real zero points into `compressed-tensors`",
        5,
        "has real zero points, which compressed-tensors does not carry",
        lambda b: _export(_written(b, round_zero=False), b, "compressed-tensors"),
    ),
    (
        "a type of GGUF files whose minima lie between the codes into `gptq`",
        5,
        "set bits=4 group_size=32 in place of the type",
        lambda b: _export(_written(b, group_size=32, type="q4_1"), b, "gptq"),
    ),
    (
        "an all-too fine scale",
        5,
        "are no float16 numbers: set scale_dtype=float16",
        lambda b: _export(_written(b, scale_dtype="float32"), b, "gptq"),
    ),
    (
        "a damaged file, with `--like`",
        3,
        "is no whole GGUF file",
        lambda b: _export(_written(b, sym=True), b, "gguf", "--like", b.write("base.gguf", "x")),
    ),
]

AREA = area("`roundel export`", ROWS)
