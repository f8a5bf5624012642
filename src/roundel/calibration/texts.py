"""Reading documents: files, folders, hub data sets, and the English inside Python.

A document is a string, a list of token ids (already tokenized), or a chat. With the documents come words that say what
was taken for what. Of places that hold more than is needed a portion is kept (portion.py).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any

from roundel.calibration.files import PACKED, UNREADABLE, open_text, passages, unreadable
from roundel.calibration.forms import Document
from roundel.calibration.kinds import BINARY, PLAIN, ROWS, kind_of
from roundel.calibration.portion import Need, Portion
from roundel.calibration.rows import Reader, extent, is_blank
from roundel.calibration.sources import Source
from roundel.calibration.tables import read_rows
from roundel.errors import CalibrationError
from roundel.formatting import first_line

_SUFFIXES = (*PLAIN, *ROWS, *PACKED)
# What `save_to_disk` of datasets writes beside its tables.
_BOOKKEEPING = ("dataset_info.json", "state.json", "dataset_dict.json")
# name: (hub id, configuration, split, streamed rather than downloaded whole)
_HUB_SETS: dict[str, tuple[str, str | None, str, bool]] = {
    "pile-10k": ("NeelNanda/pile-10k", None, "train", False),
    "c4": ("allenai/c4", "en", "train", True),
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1", "train", False),
    "ptb": ("ptb-text-only/ptb_text_only", None, "train", False),
}
# Characters of a text that are read at a time where all of it is needed.
_WHOLE = 1 << 20
# Documents read from a streamed data set: enough for 512 samples of 2048 tokens.
_STREAMED_DOCUMENTS = 20_000


@dataclass(frozen=True)
class Documents:
    """What a place holds.

    Attributes:
        documents: none of them blank.
        summary: what was taken for what.
        plain: they are whole files of plain text, not rows.
        decoded: some of them were decoded from text, as the encoding says.
        partly: there is more that was not kept.
        held: characters that were in memory at the same time.
    """

    documents: list[Document]
    summary: str
    plain: bool = False
    decoded: bool = False
    partly: bool = False
    held: int = 0


@dataclass
class _Found:
    """What files of one form hold."""

    documents: list[Document] = field(default_factory=list)
    files: int = 0


def read_documents(source: Source, encoding: str | None = None, need: Need | None = None) -> Documents:
    """Documents of a file, of a folder, of `pydoc`, or of a hub data set.

    Args:
        source: place and field.
        encoding: of text files without a byte order mark; None: UTF-8.
        need: how much of local files; None: all.

    Raises:
        CalibrationError: no such file or data set, unreadable or doubtful rows, nothing in it.
    """
    place, path = source.place, source.path
    if source.is_local or glob(str(path), recursive=True):
        found = _read_files(source, _files(source, encoding), encoding, need)
    elif place == "pydoc":
        if source.field:
            raise CalibrationError("pydoc has no fields: leave the field out")
        found = Documents(list(pydoc_documents()), "Python's reference manual")
    elif path.suffix.lower() in _SUFFIXES or place.startswith((".", "/", "~")) or set(place) & set("*?\\"):
        raise CalibrationError(
            f"no file {place}: a file of text or rows (.txt .json .jsonl .csv .tsv .parquet .arrow .pt, packed or not) "
            "or a folder of them is expected"
        )
    else:
        found = _read_hub(source)
    kept = [document for document in found.documents if not is_blank(document)]
    if not kept and not found.partly:
        raise CalibrationError(f"no text in {place}: documents with at least one character are expected")
    return replace(found, documents=kept)


def pydoc_documents() -> Iterator[str]:
    """The reference manual that `help()` shows: some 400 kB of English, on every machine with Python."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]


def _files(source: Source, encoding: str | None) -> list[Path]:
    """The file, or all files of a folder or pattern, in the order of their names; hidden ones are left out."""
    path = source.path
    if path.is_file():
        return [path]
    found: list[Path] = []
    for start in [path] if path.is_dir() else map(Path, sorted(glob(str(path), recursive=True))):
        found += _walk(start) if start.is_dir() else [start]
    if any(file.suffix.lower() == ".arrow" for file in found):
        found = [file for file in found if file.name not in _BOOKKEEPING]
    if not found:
        raise CalibrationError(f"no files in {source.place}: a folder with files of text or rows is expected")
    if path.is_file() or len(found) == 1:
        return found
    tables = [file for file in found if kind_of(file, encoding)]
    others = [file for file in found if file not in tables]
    if tables and others:
        meant = f"*{tables[0].suffix}" if tables[0].suffix else tables[0].name
        raise CalibrationError(
            f"{source.place} holds files of rows ({tables[0].name}, {len(tables)} in all) and others "
            f"({others[0].name}, {len(others)} in all): give those that are meant, {path}/{meant} for example, "
            "in quotes"
        )
    return found


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise CalibrationError(f"{error.filename} cannot be read ({error.strerror}): give a folder that can")

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place) / name for name in sorted(files) if not name.startswith("."))


def _read_files(source: Source, files: list[Path], encoding: str | None, need: Need | None) -> Documents:
    """Of rows the documents; of plain text a document a file, or passages of it."""
    kinds = [kind_of(path, encoding) for path in files]
    rows = any(kinds)
    portion: Portion[tuple[int, Document]] = Portion(need.most(rows), need.seed) if need else Portion()
    told = []
    for number, (path, kind) in enumerate(zip(files, kinds, strict=True)):
        if portion.full:
            break
        reading = _rows_of if kind else _passages_of
        told.append(reading(number, path, kind, source, encoding, portion, need))
    kept: dict[int, list[Document]] = {number: [] for number in range(len(told))}
    for number, document in portion.items:
        kept[number].append(document)
    forms: dict[str, _Found] = {}
    for words, documents in zip(told, kept.values(), strict=True):
        if portion.partly and not documents:
            continue
        # Passages of a spread portion are texts of their own.
        whole = not rows and portion.stride == 1
        found = forms.setdefault(words, _Found())
        found.documents += ["".join(map(str, documents))] if whole else documents
        found.files += 1
    parts = []
    for key, found in forms.items():
        words, _, remarks = key.partition("|")
        if len(files) > 1:
            words += f" in {found.files} file{'s' if found.files > 1 else ''}"
        parts.append(words + (f" ({remarks})" if remarks else ""))
    words = ", ".join([*parts, *_words_of(portion, rows)])
    documents = [document for found in forms.values() for document in found.documents]
    decoded = any(kind not in BINARY for kind in kinds)
    return Documents(documents, words, not rows, decoded, portion.partly, portion.held)


def _words_of(portion: Portion[tuple[int, Document]], rows: bool) -> list[str]:
    """How much was kept, and what was left out."""
    found = []
    if portion.full:
        found.append("from the beginning")
    if portion.stride > 1:
        count = len(portion.items)
        what = ("row" if rows else "passage") + ("s" if count != 1 else "")
        found.append(f"{count} {what} spread evenly over it, one of every {portion.stride}")
    if portion.blank:
        found.append(f"{portion.blank} row{'s' if portion.blank > 1 else ''} without text skipped")
    return found


def _rows_of(
    number: int,
    path: Path,
    kind: str,
    source: Source,
    encoding: str | None,
    portion: Portion[tuple[int, Document]],
    need: Need | None,
) -> str:
    """Put a file's documents into a portion; returns words for its form and, behind a bar, remarks."""
    remarks: list[str] = []
    reader = Reader(source.place, source.field)
    rows = read_rows(path, kind, encoding, remarks, portion.wants)
    for where, row in rows:
        document = reader.document(row, where)
        if is_blank(document):
            portion.blank += 1
            continue
        portion.add((number, document), extent(document))
        if portion.full:
            break
    return f"{reader.summary or 'nothing'}|{', '.join(filter(None, remarks))}"


def _passages_of(
    number: int,
    path: Path,
    kind: str,
    source: Source,
    encoding: str | None,
    portion: Portion[tuple[int, Document]],
    need: Need | None,
) -> str:
    """The same for the passages of a text."""
    if source.field:
        raise CalibrationError(
            f"{path} is read as plain text and has no field {source.field}: a file of rows (.jsonl, .csv, .parquet) is "
            "expected, or leave the field out"
        )
    length = need.passage if need else _WHOLE
    try:
        stream, words = open_text(path, encoding)
        with stream:
            for passage in passages(stream, length):
                if portion.wants():
                    portion.add((number, passage), len(passage))
                if portion.full:
                    break
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    return f"text|{words}"


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
        documents = [reader.document(row, where) for where, row in named]
    except (OSError, ValueError, RuntimeError) as error:
        raise CalibrationError(
            f"the data set {name} cannot be loaded ({first_line(error)}); expected is a file, `self`, `pydoc`, "
            f"{', '.join(_HUB_SETS)}, or the id of a hub data set that can be reached"
        ) from error
    return Documents(documents, reader.summary)
