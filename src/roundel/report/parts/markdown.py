"""Text as Markdown that says just this text, whatever is in it: names of folders and files come from outside.

Control characters are shown, lines are joined, and what Markdown or HTML would take for a mark is escaped. Code stands
in fences that are longer than any in it.
"""

import re
from collections.abc import Sequence

from roundel.formatting import printable

_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~$&!])")


def plain(text: object) -> str:
    """A text within a line or a cell of a table."""
    return _MARKS.sub(r"\\\1", one_line(text))


def one_line(text: object) -> str:
    """A text without line breaks and control characters."""
    return " ".join(printable(str(text)).split())


def code(text: object) -> str:
    """A text within a line, as code; in a table too."""
    line = one_line(text)
    if not line:
        return ""
    fence = "`" * (_longest(line) + 1)
    blank = " " if line.startswith("`") or line.endswith("`") else ""
    # A table is cut at bars before anything else is read.
    return f"{fence}{blank}{line}{blank}{fence}".replace("|", r"\|")


def block(text: str, language: str = "") -> str:
    """Several lines of code."""
    fence = "`" * max(3, _longest(text) + 1)
    return f"{fence}{language}\n{printable(text)}\n{fence}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def link(text: str, address: str) -> str:
    """A link; the address is one that this package made."""
    return f"[{plain(text)}]({address})"


def _longest(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
