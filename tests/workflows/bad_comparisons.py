"""Models that cannot be compared, and pages that would replace something."""

from typing import Any

from bad_inputs.box import Box
from bad_inputs.case import area
from roundel.system import seal
from zoo import zoo_model


def compared(box: Box, *models: Any, reference: Any = None, more: tuple[Any, ...] = ()) -> list[Any]:
    """On two windows."""
    text = box.write("text.txt", "The statement is executed when the block is left. " * 40)
    page = () if "-o" in more else ("-o", box / "page.html")
    original = reference or zoo_model("llama")
    few = ("--text", text, "--window", "64", "--limit", "2")
    return ["compare", *models, "--reference", original, *few, *page, *more]


ROWS = [
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

AREA = area("`roundel compare`", ROWS)
