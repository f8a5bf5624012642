"""Held-out texts that cannot be read."""

from bad_inputs.case import area
from bad_inputs.commands import plain, quantize
from zoo import zoo_model

ROWS = [
    ("no such text", 4, "no text none.txt", plain("--held-out", "none.txt")),
    (
        "bytes that are no text",
        4,
        "UTF-8 text is expected",
        lambda b: quantize(zoo_model("llama"), "--held-out", b.write("t.txt", bytes(range(256)))),
    ),
]

AREA = area("`--held-out`", ROWS)
