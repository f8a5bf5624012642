"""Folders of which no report can be made."""

from bad_inputs.case import area

ROWS = [
    ("no such folder", 3, "no roundel.json in none", lambda b: ["report", b / "none"]),
    ("a model that roundel did not write", 3, "roundel.json", lambda b: ["report", b.model()]),
    (
        "somebody's page in the page's place",
        6,
        "is no page of a run as roundel wrote it",
        lambda b: ["report", b.quantized(name="report.html", content="mine")],
    ),
    (
        "a report that is no JSON",
        3,
        "report.json cannot be read",
        lambda b: ["report", b.quantized(name="report.json", content="{")],
    ),
    (
        "a report of something else",
        3,
        "something else than a report",
        lambda b: ["report", b.quantized(name="report.json", content='{"a": 1}')],
    ),
    (
        "a report that is a list",
        3,
        "something else than a report",
        lambda b: ["report", b.quantized(name="report.json", content="[]")],
    ),
]

AREA = area("`roundel report`", ROWS)
