"""Predictions that cannot be kept, or were damaged where they are kept."""

from typing import Any

from bad_inputs.box import Box
from bad_inputs.case import area
from bad_inputs.commands import evaluated
from bad_inputs.run import run
from evaluation.tasks.bad_tasks import QUESTION, piqa
from zoo import zoo_model


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


ROWS = [
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
        lambda b: [*piqa(QUESTION * 2)(b), "--per-token", b / "t.parquet"],
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

AREA = area("`--cache`, `--top-k` and `--per-token`", ROWS)
