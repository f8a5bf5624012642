"""Models that cannot be timed, and numbers that they cannot be timed with."""

from bad_inputs.box import NORM
from bad_inputs.case import area
from zoo import zoo_model

ROWS = [
    ("no such model", 3, "no folder", lambda b: ["bench", zoo_model("llama"), "./none"]),
    ("a model twice", 2, "is given twice", lambda b: ["bench", zoo_model("llama"), zoo_model("llama")]),
    ("no rounds", 2, "rounds=0", lambda b: ["bench", zoo_model("llama"), "--rounds", "0"]),
    ("no new tokens", 2, "new=-1", lambda b: ["bench", zoo_model("llama"), "--new", "-1"]),
    (
        "a file of figures in no folder",
        6,
        "cannot be written",
        lambda b: ["bench", zoo_model("llama"), "--json", b / "none" / "figures.json"],
    ),
    (
        "a prompt longer than the model's positions",
        3,
        "more than the 512 positions",
        lambda b: ["bench", zoo_model("llama"), "--prompt", "600"],
    ),
    (
        "more new tokens than the model's positions leave",
        3,
        "context=128 and new=400",
        lambda b: ["bench", zoo_model("llama"), "--new", "400"],
    ),
    (
        "NaN in a norm",
        7,
        "logits of model are NaN",
        lambda b: ["bench", b.tensors(lambda tensors: tensors[NORM].fill_(float("nan")))],
    ),
]

AREA = area("`roundel bench`", ROWS)
