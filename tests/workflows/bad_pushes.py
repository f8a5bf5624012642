"""Folders and repositories of the hub that do not go together, seen before anything is uploaded or computed."""

from bad_inputs.case import area
from bad_inputs.commands import plain

ROWS = [
    ("no such folder", 3, "no roundel.json in none", lambda b: ["push", b / "none", "acme/small"]),
    ("a model that roundel did not write", 3, "roundel.json", lambda b: ["push", b.model(), "acme/small"]),
    (
        "an output of which a file was changed",
        6,
        "config.json of small was changed since",
        lambda b: ["push", b.quantized(name="config.json", content="{}"), "acme/small"],
    ),
    (
        "no name of a repository",
        9,
        "NAMESPACE/NAME of letters, digits, -, _ and . is expected",
        plain("--push-to-hub", "https://huggingface.co/acme/small"),
    ),
    ("`HF_HUB_OFFLINE` is set", 9, "unset it", plain("--push-to-hub", "acme/small")),
    ("`--private` without a repository", 2, "name one, or leave it out", plain("--private")),
]

AREA = area("`roundel push` and `--push-to-hub`", ROWS)
