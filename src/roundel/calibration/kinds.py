"""What a file holds: rows of some kind, or plain text.

Its suffix says it, in small or capital letters, without that of the packing. Under a suffix that says nothing, or under
none, the file is looked into: JSON shows by its syntax, tables by their first bytes; what is neither, and text at all,
is plain text. JSON is read as JSON under a name for tables too, and a list of it under a name for lines. Of text nobody
can say by looking that it is a table, so a CSV has to be called one.
"""

import json
from pathlib import Path

from roundel.calibration.files import (
    UNREADABLE,
    begins_like,
    check_text,
    open_bytes,
    open_text,
    suffix_of,
    unreadable,
)

LINES = (".jsonl", ".ndjson", ".jsonlines")
TABLES = (".csv", ".tsv", ".tab")
BINARY = (".parquet", ".arrow", ".pt")
ROWS = (".json", *LINES, *TABLES, *BINARY)
# Taken as they are, whatever is in them.
PLAIN = (".txt", ".text", ".raw", ".md", ".markdown", ".rst", ".tex", ".html", ".htm", ".xml")

_TABLE_MARKS = {b"PAR1": ".parquet", b"ARROW1": ".arrow"}
# Characters that are looked at.
_HEAD = 1 << 16


def kind_of(path: Path, encoding: str | None = None) -> str:
    """The suffix of the rows that a file holds; nothing: it is plain text.

    Args:
        path: of the file.
        encoding: of a text file without a byte order mark; None: UTF-8.

    Raises:
        CalibrationError: it is neither, or an archive.
    """
    suffix = suffix_of(path)
    if suffix in PLAIN:
        return ""
    if suffix in (*LINES, *TABLES):
        return ".json" if _is_json_after_all(path, suffix, encoding) else suffix
    if suffix in ROWS:
        return suffix
    try:
        with open_bytes(path) as file:
            head = file.read(8)
        table = next((kind for mark, kind in _TABLE_MARKS.items() if head.startswith(mark)), "")
        if table:
            return table
        if found := begins_like(head):
            raise ValueError(f"it begins like {found}")
        stream, _ = open_text(path, encoding)
        with stream:
            text = stream.read(_HEAD)
        check_text(text)
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    return ".json" if _is_json(text.strip(), len(text) < _HEAD) else ""


def _is_json_after_all(path: Path, suffix: str, encoding: str | None) -> bool:
    """Whether lines of JSON are one list, or a table lines of JSON: no header of a table is an object."""
    try:
        stream, _ = open_text(path, encoding)
        with stream:
            text = stream.read(_HEAD).lstrip()
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    line, ended, _ = text.partition("\n")
    if suffix in LINES:
        return (
            line.startswith("[") and bool(ended) and not _parses(line) and _is_json(text, len(text) < _HEAD)
        )
    return line.startswith("{") and _parses(line)


def _is_json(text: str, whole: bool) -> bool:
    """Whether a text, or the beginning of one, is JSON: a list, an object, or one of them or a text on each line."""
    if text[:1] not in ("{", "[", '"'):
        return False
    lines = [line for line in text.split("\n") if line.strip()]
    if not whole and len(lines) > 1:
        lines.pop()  # cut, perhaps
    if all(_parses(line) for line in lines) and (len(lines) > 1 or not text.startswith('"')):
        return True
    if whole:
        return not text.startswith('"') and _parses(text)
    return _begins_json(text)


def _parses(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list | str)
    except (ValueError, RecursionError):
        return False


def _begins_json(text: str) -> bool:
    """Whether a list or an object begins that is longer than what is looked at."""
    inner = text[1:].lstrip()
    decoder = json.JSONDecoder()
    try:
        first, end = decoder.raw_decode(inner)
    except (ValueError, RecursionError):
        # Its first part is longer than what is looked at.
        return inner.startswith('"' if text[0] == "{" else ("{", "["))
    following = inner[end:].lstrip()[:1]
    if text[0] == "{":
        return isinstance(first, str) and following == ":"
    return isinstance(first, dict | list | str) and following == ","
