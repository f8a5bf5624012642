"""Files of documents to lists of dicts: jsonl, json, csv, parquet, Arrow (as `save_to_disk` of datasets writes it).

Every damage is one error with file and line. Lines end at the line feed alone: JSON strings may hold other characters
that Python takes for line ends.
"""

import csv
import json
from pathlib import Path
from typing import Any

from roundel.errors import CalibrationError

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow", ".csv")


def read_rows(path: Path) -> list[Row]:
    """The rows of one file; those of a .csv, which has no header, are `{"cells": [...]}`.

    Raises:
        CalibrationError: the file is damaged, or not of the kind that its name says.
    """
    try:
        if path.suffix == ".jsonl":
            return _json_lines(path)
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            return [_object(row, path, f"row {number}") for number, row in enumerate(content, 1)]
        if path.suffix == ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                return [{"cells": cells} for cells in csv.reader(file, strict=True)]
        return _table(path)
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise CalibrationError(
            f"{path} cannot be read ({error}): the file as it was published is expected"
        ) from error


def read_labels(path: Path, rows: int, values: tuple[str, ...]) -> list[str]:
    """A label on each line, one for each row.

    Raises:
        CalibrationError: other labels, or another number of them.
    """
    try:
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise CalibrationError(
            f"{path} cannot be read ({error}): a label on each line is expected"
        ) from error
    for number, label in enumerate(lines, 1):
        if label not in values:
            raise CalibrationError(
                f"{path}, line {number}: {label!r}; one of {', '.join(values)} is expected"
            )
    if len(lines) != rows:
        raise CalibrationError(
            f"{path} has {len(lines)} labels for {rows} documents: a label for each is expected; "
            "take both files from the same release"
        )
    return lines


def _json_lines(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CalibrationError(
                f"{path}, line {number} is no JSON ({error}): an object on each line is expected"
            ) from error
        rows.append(_object(row, path, f"line {number}"))
    return rows


def _object(row: Any, path: Path, where: str) -> Row:
    if not isinstance(row, dict):
        raise CalibrationError(f"{path}, {where}: {type(row).__name__} found, an object is expected")
    return row


def _table(path: Path) -> list[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        if path.suffix == ".parquet":
            return parquet.read_table(path).to_pylist()
        with pyarrow.memory_map(str(path)) as source:
            try:
                return pyarrow.ipc.open_stream(source).read_all().to_pylist()
            except pyarrow.ArrowInvalid:
                source.seek(0)
                return pyarrow.ipc.open_file(source).read_all().to_pylist()
    except pyarrow.ArrowException as error:
        raise CalibrationError(
            f"{path} cannot be read ({error}): a whole {path.suffix[1:]} file is expected; copy or download it again"
        ) from error
