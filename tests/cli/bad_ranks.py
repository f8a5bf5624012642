"""Numbers of processes that are none."""

from bad_inputs.case import area
from bad_inputs.commands import evaluated, plain
from zoo import zoo_model

ROWS = [
    ("no process", 2, "--nproc 0: 1 process or more", plain("--nproc", "0")),
    (
        "less than none",
        2,
        "--nproc -2: 1 process or more",
        lambda b: evaluated(b, zoo_model("llama"), "--nproc", "-2"),
    ),
    ("no number", 2, "Invalid value for '--nproc'", plain("--nproc", "all")),
]

AREA = area("`--nproc`", ROWS)
