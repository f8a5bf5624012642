"""Several recipes of which one is wrong, or has no place of its own."""

import shutil
from typing import Any

from bad_inputs.case import Arrange, area
from zoo import zoo_model


def swept(names: str, *more: Any, model: str | None = None) -> Arrange:
    """Several recipes."""
    return lambda box: ["sweep", model or zoo_model("llama"), "--recipes", names, "-o", "all", *more]


ROWS = [
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

AREA = area("`roundel sweep`", ROWS)
