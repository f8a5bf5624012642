"""How figures and names are said to people, wherever they are said."""

import re

# What would move the cursor, change colours or end the output; lines and tabs may be part of a text.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def size(count: float) -> str:
    """Bytes for people: `74.1 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def printable(text: str) -> str:
    """A text that any terminal and any file in UTF-8 takes: control characters and lone surrogates (bytes of a file's
    name that are no text) as `\\x1b`."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
