"""Tensors of the wrong shape or type, NaN and infinity in weights and activations."""

from pathlib import Path

import torch

from bad_inputs.box import NORM, UP, Box
from bad_inputs.case import Arrange, area
from bad_inputs.commands import GPTQ, quantize
from model.bad_stored import packed
from zoo.quantized import fp8


def _retyped(dtype: torch.dtype) -> Arrange:
    return lambda box: quantize(box.tensors(lambda tensors: tensors.update({UP: tensors[UP].to(dtype)})))


def _huge_norm(box: Box) -> Path:
    return box.tensors(lambda tensors: tensors[NORM].fill_(3e38))


ROWS = [
    (
        "FP8 with a scale that is not finite",
        7,
        "holds NaN or infinity",
        packed(fp8, lambda t: t[f"{UP}_scale_inv"].fill_(float("nan"))),
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
        lambda b: quantize(b.filled(UP, float("nan"))),
    ),
    (
        "infinity in a norm",
        7,
        f"{NORM} of the source model holds",
        lambda b: quantize(b.filled(NORM, float("inf"))),
    ),
    (
        "NaN in the embedding",
        7,
        "model.embed_tokens.weight of the source model holds NaN",
        lambda b: quantize(b.filled("model.embed_tokens.weight", float("nan"))),
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

AREA = area("Its tensors", ROWS)
