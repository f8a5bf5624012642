"""docs/errors.md: a section for each area, a row for each case, with the message that it gives.

Every case looks for its own row (law.py), so that areas can be tested in processes of their own; what is around the
rows is compared once (tests/test_errors_page.py).
"""

import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from bad_inputs.case import Area, Case
from bad_inputs.run import Said

ERRORS = Path(__file__).parents[2] / "docs" / "errors.md"
COMMAND = "python tests/errors_page.py"


def written(areas: Iterable[Area], answer: Callable[[Case], str]) -> str:
    """The page, of rows that `answer` gives."""
    lines = [
        "# What bad input gives",
        "",
        "Every command leaves with one message, which says what was found, what is expected and what to do, and with",
        "the exit code of its kind; no output folder appears, and an existing one keeps its bytes. Each row is tested; "
        "written by",
        "",
        f"    {COMMAND}",
        "",
        "Exit codes: 2 recipe and options, 3 model, 4 calibration data or text, 5 format, 6 output folder, 7 NaN or "
        "infinity, 8 another rank is gone, 130 stopped.",
    ]
    for area in areas:
        lines += ["", f"## {area.section}", "", "| input | code | message |", "|---|---|---|"]
        lines += [answer(case) for case in area.cases]
    return "\n".join(lines) + "\n"


def row(case: Case, said: Said) -> str:
    """Of what a case gave."""
    message = re.sub(r"([|*<\\_`\[\]])", r"\\\1", said.message)
    return f"| {case.summary} | {said.code} | {message} |"


def listed(case: Case) -> str:
    """The row that stands in the docs; empty if there is none."""
    return _rows().get((case.section, case.summary), "")


@cache
def _rows() -> dict[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    section = ""
    for line in ERRORS.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.startswith("| "):
            found[section, line.removeprefix("| ").split(" | ")[0]] = line
    return found
