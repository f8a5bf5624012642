"""Reading documents: files, folders, hub data sets, and the English inside Python.

A document is a string, a list of token ids (already tokenized), or a chat. With the documents come words that say what
was taken for what.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any

from roundel.calibration.files import PACKED, UNREADABLE, suffix_of, unreadable, whole_text
from roundel.calibration.forms import Document, Reader, is_blank
from roundel.calibration.sources import Source
from roundel.calibration.tables import BINARY, ROWS, Row, read_rows
from roundel.errors import CalibrationError
from roundel.words import first_line

_PLAIN = (".txt", ".raw")
_SUFFIXES = (*_PLAIN, *ROWS, *PACKED)
# What `save_to_disk` of datasets writes beside its tables.
_BOOKKEEPING = ("dataset_info.json", "state.json", "dataset_dict.json")
# name: (hub id, configuration, split, streamed rather than downloaded whole)
_HUB_SETS: dict[str, tuple[str, str | None, str, bool]] = {
    "pile-10k": ("NeelNanda/pile-10k", None, "train", False),
    "c4": ("allenai/c4", "en", "train", True),
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1", "train", False),
    "ptb": ("ptb-text-only/ptb_text_only", None, "train", False),
}
# Documents read from a streamed data set: enough for 512 samples of 2048 tokens.
_STREAMED_DOCUMENTS = 20_000


@dataclass(frozen=True)
class Documents:
    """What a place holds.

    Attributes:
        documents: none of them blank.
        words: what was taken for what.
        plain: they are whole files of plain text, not rows.
        decoded: some of them were decoded from text, as the encoding says.
    """

    documents: list[Document]
    words: str
    plain: bool = False
    decoded: bool = False


@dataclass
class _Found:
    """What files of one form hold."""

    documents: list[Document] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


def read_documents(source: Source, encoding: str | None = None) -> Documents:
    """Documents of a file, of a folder, of `pydoc`, or of a hub data set.

    Args:
        source: place and field.
        encoding: of text files without a byte order mark; None: UTF-8.

    Raises:
        CalibrationError: no such file or data set, unreadable or doubtful rows, nothing in it.
    """
    place, path = source.place, source.path
    if source.is_local or glob(str(path), recursive=True):
        found = _read_files(source, _files(source), encoding)
    elif place == "pydoc":
        if source.field:
            raise CalibrationError("pydoc has no fields: leave the field out")
        found = Documents(list(pydoc_documents()), "Python's reference manual")
    elif path.suffix.lower() in _SUFFIXES or place.startswith((".", "/", "~")) or set(place) & set("*?\\"):
        raise CalibrationError(
            f"no file {place}: a file of text or rows (.txt .json .jsonl .csv .tsv .parquet .arrow .pt, packed or not) "
            "or a folder of them is wanted"
        )
    else:
        found = _read_hub(source)
    kept = [document for document in found.documents if not is_blank(document)]
    if not kept:
        raise CalibrationError(f"no text in {place}: documents with at least one character are wanted")
    return Documents(kept, found.words, found.plain, found.decoded)


def pydoc_documents() -> Iterator[str]:
    """The reference manual that `help()` shows: some 400 kB of English, on every machine with Python."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]


def _files(source: Source) -> list[Path]:
    """The file, or all files of a folder or pattern, in the order of their names; hidden ones are left out."""
    path = source.path
    if path.is_file():
        return [path]
    found: list[Path] = []
    for start in [path] if path.is_dir() else map(Path, sorted(glob(str(path), recursive=True))):
        found += _walk(start) if start.is_dir() else [start]
    if any(file.suffix == ".arrow" for file in found):
        found = [file for file in found if file.name not in _BOOKKEEPING]
    if not found:
        raise CalibrationError(f"no files in {source.place}: a folder with files of text or rows is wanted")
    if path.is_file() or len(found) == 1:
        return found
    tables = [file for file in found if suffix_of(file) in ROWS]
    others = [file for file in found if file not in tables]
    if tables and others:
        raise CalibrationError(
            f"{source.place} holds files of rows ({tables[0].name}, {len(tables)} in all) and others "
            f"({others[0].name}, {len(others)} in all): give those that are meant, {path}/*{tables[0].suffix} for "
            "example, in quotes"
        )
    return found


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise CalibrationError(f"{error.filename} cannot be read ({error.strerror}): give a folder that can")

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place) / name for name in sorted(files) if not name.startswith("."))


def _read_files(source: Source, files: list[Path], encoding: str | None) -> Documents:
    forms: dict[str, _Found] = {}
    plain = True
    for path in files:
        suffix = suffix_of(path)
        remarks: list[str] = []
        if suffix in ROWS:
            plain = False
            reader = Reader(source.place, source.field)
            documents = _rows(reader, read_rows(path, suffix, encoding, remarks))
            words = reader.words or "nothing"
        else:
            documents, words = [_plain_text(path, source, encoding, remarks)], "text"
        told = ", ".join(filter(None, remarks))
        found = forms.setdefault(f"{words}|{told}", _Found())
        found.documents += documents
        found.files.append(path)
    parts = []
    for key, found in forms.items():
        words, _, told = key.partition("|")
        if len(files) > 1:
            words += f" in {len(found.files)} file{'s' if len(found.files) > 1 else ''}"
        parts.append(words + (f" ({told})" if told else ""))
    documents = [document for found in forms.values() for document in found.documents]
    decoded = any(suffix_of(path) not in BINARY for path in files)
    return Documents(documents, ", ".join(parts), plain, decoded)


def _plain_text(path: Path, source: Source, encoding: str | None, remarks: list[str]) -> str:
    if source.field:
        raise CalibrationError(
            f"{path} is read as plain text and has no field {source.field}: a file of rows (.jsonl, .csv, .parquet) is "
            "wanted, or leave the field out"
        )
    try:
        text, words = whole_text(path, encoding)
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    remarks.append(words)
    return text


def _rows(reader: Reader, rows: Iterable[Row]) -> list[Document]:
    return [reader.document(row, where) for where, row in rows]


def _read_hub(source: Source) -> Documents:
    name = source.place
    try:
        import datasets
    except ImportError as error:
        raise CalibrationError(
            f"the hub data set {name} needs the datasets library: pip install 'roundel[data]', "
            "or give a file, `self` or `pydoc`"
        ) from error
    hub_id, configuration, split, streaming = _HUB_SETS.get(name, (name, None, "train", True))
    reader = Reader(name, source.field)
    try:
        rows: Any = datasets.load_dataset(hub_id, configuration, split=split, streaming=streaming)
        named = (
            (f"row {n} of {hub_id}", row)
            for n, row in enumerate(islice(rows, _STREAMED_DOCUMENTS if streaming else None))
        )
        documents = _rows(reader, named)
    except (OSError, ValueError, RuntimeError) as error:
        raise CalibrationError(
            f"the data set {name} cannot be loaded ({first_line(error)}); wanted is a file, `self`, `pydoc`, "
            f"{', '.join(_HUB_SETS)}, or the id of a hub data set that can be reached"
        ) from error
    return Documents(documents, reader.words)
