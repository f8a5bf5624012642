"""Rows of a file: JSON, JSON lines, CSV, Parquet, Arrow, token ids that torch saved.

Each row comes with the words that name it in errors. What a row means is forms.py's matter.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from roundel.calibration.files import UNREADABLE, NotText, open_bytes, open_text, unreadable, whole_text
from roundel.errors import CalibrationError

LINES = (".jsonl", ".ndjson", ".jsonlines")
TABLES = (".csv", ".tsv", ".tab")
BINARY = (".parquet", ".arrow", ".pt")
ROWS = (".json", *LINES, *TABLES, *BINARY)

# Where a row is, and the row.
Row = tuple[str, Any]

# A field of a table may be a whole document.
_LARGEST_FIELD = 2**31 - 1
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def read_rows(path: Path, suffix: str, encoding: str | None, remarks: list[str]) -> Iterator[Row]:
    """The rows of a file.

    Args:
        path: of the file.
        suffix: that says what it holds.
        encoding: of a text file without a byte order mark; None: UTF-8.
        remarks: is given the words for its encoding, and for what else was found out.

    Raises:
        CalibrationError: it is damaged, or holds something else.
    """
    try:
        if suffix in LINES:
            stream, words = open_text(path, encoding)
            remarks.append(words)
            with stream:
                yield from _json_lines(path, stream)
        elif suffix == ".json":
            yield from _json(path, encoding, remarks)
        elif suffix in TABLES:
            yield from _table(path, suffix, encoding, remarks)
        elif suffix == ".pt":
            yield from _numbered(path, _token_tensors(path))
        else:
            yield from _numbered(path, _arrow(path, suffix))
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def _numbered(path: Path, rows: Iterable[Any]) -> Iterator[Row]:
    for number, row in enumerate(rows):
        yield f"row {number} of {path}", row


def _json_lines(path: Path, lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield f"line {number} of {path}", json.loads(line)
            except json.JSONDecodeError as error:
                if "\0" in line:
                    raise NotText(f"line {number} holds NUL characters") from error
                raise ValueError(
                    f"line {number} is no JSON ({error.msg} at character {error.pos})"
                ) from error


def _json(path: Path, encoding: str | None, remarks: list[str]) -> Iterator[Row]:
    """A list of rows, or one; or JSON lines under another name, as C4 is published."""
    text, words = whole_text(path, encoding)
    remarks.append(words)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise
        remarks.append("an object on each line")
        yield from _json_lines(path, io.StringIO(text))
    else:
        yield from _numbered(path, content if isinstance(content, list) else [content])


def _table(path: Path, suffix: str, encoding: str | None, remarks: list[str]) -> Iterator[Row]:
    """Rows under a header: of a .csv with whichever separator the header has most of."""
    text, words = whole_text(path, encoding, newline="")
    remarks.append(words)
    usual = "," if suffix == ".csv" else "\t"
    separator = usual if suffix != ".csv" else max(_SEPARATORS, key=lambda mark: len(_header(text, mark)))
    if separator != usual:
        remarks.append(f"fields between {_SEPARATORS[separator]}")
    rows = _cells(text, separator)
    header = rows[0][1] if rows else []
    names = [name.strip() for name in header]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"its header has the column {twice[0]!r} twice: columns of different names are wanted"
        )
    for line, cells in rows[1:]:
        if len(cells) != len(names):
            raise ValueError(
                f"line {line} has {len(cells)} fields and the header {len(names)}: as many are wanted, "
                "and quotes around a field that holds the separator or a line end"
            )
        yield f"line {line} of {path}", dict(zip(names, cells, strict=True))


def _header(text: str, separator: str) -> list[str]:
    return next(csv.reader(io.StringIO(text[:65536], newline=""), delimiter=separator), [])


def _cells(text: str, separator: str) -> list[tuple[int, list[str]]]:
    """Lines that are not blank, as fields, with the number of the line on which each ends."""
    before = csv.field_size_limit(_LARGEST_FIELD)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        return [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num} is no row of a table ({error})") from error
    finally:
        csv.field_size_limit(before)


def _arrow(path: Path, suffix: str) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise CalibrationError(
            f"reading {path} needs pyarrow: pip install 'roundel[data]', or give the text as .jsonl"
        ) from error
    with open_bytes(path) as file:
        packed = path.suffix.lower() != suffix
        source = io.BytesIO(file.read()) if packed else file
        try:
            if suffix == ".parquet":
                batches: Any = parquet.ParquetFile(source).iter_batches()
            else:
                batches = _arrow_batches(pyarrow, source)
            for batch in batches:
                yield from batch.to_pylist()
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
            raise ValueError("a tensor of token ids [N, S], or a list of them [S] or [1, S], is wanted")
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
