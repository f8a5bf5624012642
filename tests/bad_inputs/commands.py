"""Commands that cases of several areas give: on a whole model, with something wrong beside it."""

from pathlib import Path
from typing import Any

from bad_inputs.box import Box
from bad_inputs.case import Arrange
from zoo import zoo_model

RTN = ("--method", "rtn", "--group-size", "32")
GPTQ = ("--method", "gptq", "--group-size", "32", "--set", "nsamples=4")
ON_DATA = (*GPTQ, "--set", "seqlen=32", "--calibration", "pydoc")


def quantize(model: Path | str, *more: Any) -> list[Any]:
    """By round-to-nearest, which needs no data."""
    return ["quantize", model, *RTN, *more]


def plain(*more: Any) -> Arrange:
    """A whole model, and some option."""
    return lambda box: quantize(zoo_model("llama"), *more)


def evaluated(box: Box, model: Path | str, *more: Any) -> list[Any]:
    """On some windows of 64 tokens."""
    text = box.write("text.txt", "The statement is executed when the block is left. " * 40)
    return ["eval", model, "--text", text, "--window", "64", "--limit", "2", *more]
