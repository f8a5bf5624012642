"""Rows of a file: JSON, JSON lines, CSV, Parquet, Arrow, token ids that torch saved.

Each row comes with the words that name it in errors. What a row means is forms.py's matter.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch

from roundel.calibration.files import (
    PACKED,
    UNREADABLE,
    NotText,
    check_text,
    open_bytes,
    open_text,
    unreadable,
)
from roundel.calibration.kinds import LINES, TABLES
from roundel.errors import CalibrationError

# Where a row is, and the row.
Row = tuple[str, Any]

# A field of a table may be a whole document.
_LARGEST_FIELD = 2**31 - 1
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
# Rows of a binary table that become Python's at a time.
_BATCH = 256
# Characters of a text that are looked at first.
_HEAD = 1 << 20


def read_rows(
    path: Path, kind: str, encoding: str | None, remarks: list[str], wants: Callable[[], bool] = lambda: True
) -> Iterator[Row]:
    """The rows of a file.

    Args:
        path: of the file.
        kind: the suffix that says what it holds.
        encoding: of a text file without a byte order mark; None: UTF-8.
        remarks: is given the words for its encoding, and for what else was found out.
        wants: is asked of every row whether it is needed.

    Raises:
        CalibrationError: it is damaged, or holds something else.
    """
    try:
        if kind == ".pt":
            rows: Iterator[Row] = _numbered(path, _token_tensors(path))
        elif kind in (".parquet", ".arrow"):
            rows = _numbered(path, _arrow(path, kind))
        else:
            stream, words = open_text(path, encoding, newline="" if kind in TABLES else None)
            remarks.append(words)
            with stream:
                if kind in LINES:
                    yield from _json_lines(path, stream, wants)
                elif kind == ".json":
                    yield from _json(path, stream, remarks, wants)
                else:
                    yield from (row for row in _table(path, kind, stream, remarks) if wants())
            return
        yield from (row for row in rows if wants())
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def _numbered(path: Path, rows: Iterable[Any]) -> Iterator[Row]:
    for number, row in enumerate(rows):
        yield f"row {number} of {path}", row


def _json_lines(path: Path, lines: Iterable[str], wants: Callable[[], bool]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip() or not wants():
            continue
        try:
            yield f"line {number} of {path}", json.loads(line)
        except json.JSONDecodeError as error:
            if "\0" in line:
                raise NotText(f"line {number} holds NUL characters") from error
            raise ValueError(f"line {number} is no JSON ({error.msg} at character {error.pos})") from error


def _json(path: Path, stream: IO[str], remarks: list[str], wants: Callable[[], bool]) -> Iterator[Row]:
    """A list of rows, or one; or JSON lines under another name, as C4 is published.

    Long ones are read bit by bit: a list, and lines of which the first is JSON itself.
    """
    head = stream.read(_HEAD)
    first = head.lstrip()
    line, end, _ = first.partition("\n")
    if len(head) == _HEAD and end and _parses(line):
        remarks.append("an object on each line")
        whole = io.StringIO(head + stream.readline())
        yield from _json_lines(path, chain(whole, stream), wants)
        return
    if len(head) == _HEAD and first.startswith("["):
        yield from (row for row in _numbered(path, _elements(first, stream)) if wants())
        return
    text = head + stream.read()
    check_text(text)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise
        remarks.append("an object on each line")
        yield from _json_lines(path, io.StringIO(text), wants)
    else:
        rows = _numbered(path, content if isinstance(content, list) else [content])
        yield from (row for row in rows if wants())


def _parses(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _elements(text: str, stream: IO[str]) -> Iterator[Any]:
    """The elements of a list of JSON, of which a stream has more than the text that was read."""
    decoder = json.JSONDecoder()
    place, gone, count, ended = 1, 0, 0, False
    while True:
        try:
            start = _past_blanks(text, place)
            if text[start] == "]":
                break
            if count:
                if text[start] != ",":
                    raise json.JSONDecodeError("Expecting ',' delimiter", text, start)
                start = _past_blanks(text, start + 1)
            element, end = decoder.raw_decode(text, start)
            text[end]  # a number may go on
        except (ValueError, IndexError) as error:
            if ended:
                check_text(text)
                at = gone + getattr(error, "pos", len(text))
                raise ValueError(
                    f"{getattr(error, 'msg', 'its list has no end')} at character {at}"
                ) from error
            more = stream.read(max(_HEAD, len(text) - place))
            ended = not more
            gone += place
            text, place = text[place:] + more, 0
            continue
        yield element
        place, count = end, count + 1
    if (text[start + 1 :] + stream.read()).strip():
        raise ValueError("something stands behind its list")


def _past_blanks(text: str, place: int) -> int:
    while text[place] in " \t\r\n":
        place += 1
    return place


def _table(path: Path, kind: str, stream: IO[str], remarks: list[str]) -> Iterator[Row]:
    """Rows under a header: of a .csv with whichever separator the header has most of."""
    head = stream.read(65536) + stream.readline()
    usual = "," if kind == ".csv" else "\t"
    separator = usual if kind != ".csv" else max(_SEPARATORS, key=lambda mark: len(_header(head, mark)))
    if separator != usual:
        remarks.append(f"fields between {_SEPARATORS[separator]}")
    rows = _cells(chain(io.StringIO(head, newline=""), stream), separator)
    _, header = next(rows, (0, []))
    names = [name.strip() for name in header]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"its header has the column {twice[0]!r} twice: columns of different names are expected"
        )
    for line, cells in rows:
        if len(cells) != len(names):
            raise ValueError(
                f"line {line} has {len(cells)} fields and the header {len(names)}: as many are expected, "
                "and quotes around a field that holds the separator or a line end"
            )
        yield f"line {line} of {path}", dict(zip(names, cells, strict=True))


def _header(text: str, separator: str) -> list[str]:
    return next(csv.reader(io.StringIO(text[:65536], newline=""), delimiter=separator), [])


def _cells(lines: Iterable[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """Lines that are not blank, as fields, with the number of the line on which each ends."""
    reader = csv.reader(_checked(lines), delimiter=separator, strict=True)
    while True:
        before = csv.field_size_limit(_LARGEST_FIELD)
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num} is no row of a table ({error})") from error
        finally:
            csv.field_size_limit(before)
        if cells is None:
            return
        if cells:
            yield reader.line_num, cells


def _checked(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        check_text(line)
        yield line


def _arrow(path: Path, kind: str) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise CalibrationError(
            f"reading {path} needs pyarrow: pip install 'roundel[data]', or give the text as .jsonl"
        ) from error
    with open_bytes(path) as file:
        packed = path.suffix.lower() in PACKED
        source = io.BytesIO(file.read()) if packed else file
        try:
            if kind == ".parquet":
                batches: Any = parquet.ParquetFile(source).iter_batches()
            else:
                batches = _arrow_batches(pyarrow, source)
            for batch in batches:
                for start in range(0, batch.num_rows, _BATCH):
                    yield from batch.slice(start, _BATCH).to_pylist()
        except pyarrow.ArrowException as error:
            raise ValueError(str(error)) from error


def _arrow_batches(pyarrow: Any, source: Any) -> Any:
    """As `save_to_disk` of datasets writes them (a stream), or as a file."""
    try:
        return pyarrow.ipc.open_stream(source)
    except pyarrow.ArrowInvalid:
        source.seek(0)
        table = pyarrow.ipc.open_file(source)
        return (table.get_batch(number) for number in range(table.num_record_batches))


def _token_tensors(path: Path) -> Iterator[list[int]]:
    """Token ids that torch saved: a tensor `[N, S]`, or a list of tensors `[S]` or `[1, S]`."""
    try:
        with open_bytes(path) as file:
            saved = torch.load(io.BytesIO(file.read()), weights_only=True)
    except (RuntimeError, UnpicklingError, EOFError) as error:
        raise ValueError(f"no tensors that torch loads with weights_only ({type(error).__name__})") from error
    # Others than plain tensors (sparse ones, ones without data) cannot be cut into rows.
    rows = (
        saved
        if isinstance(saved, list | tuple) or (isinstance(saved, torch.Tensor) and is_ids(saved))
        else [saved]
    )
    for row in rows:
        if not isinstance(row, torch.Tensor) or not is_ids(row) or row.squeeze().ndim > 1:
            raise ValueError("a tensor of token ids [N, S], or a list of them [S] or [1, S], is expected")
        yield row.flatten().tolist()


def is_ids(tensor: torch.Tensor) -> bool:
    """Whether a tensor can be one of token ids: integers, in memory, none left out."""
    whole = tensor.layout is torch.strided and not tensor.is_meta
    return (
        whole
        and not tensor.dtype.is_floating_point
        and not tensor.dtype.is_complex
        and tensor.dtype != torch.bool
    )
