"""Reading documents: files, hub data sets, and the English inside Python.

A document is a string, a list of token ids (already tokenized), or a list of chat messages.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from roundel.errors import CalibrationError

Document = str | list[int] | list[dict[str, Any]]

_TEXT_COLUMNS = ("text", "content", "document", "sentence")
_SUFFIXES = (".txt", ".raw", ".json", ".jsonl", ".parquet", ".pt")
# name: (hub id, configuration, split, streamed rather than downloaded whole)
_HUB_SETS: dict[str, tuple[str, str | None, str, bool]] = {
    "pile-10k": ("NeelNanda/pile-10k", None, "train", False),
    "c4": ("allenai/c4", "en", "train", True),
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1", "train", False),
    "ptb": ("ptb-text-only/ptb_text_only", None, "train", False),
}
# No token id: it would not fit a tensor.
_TOO_LARGE = 2**63
# Documents read from a streamed data set: enough for 512 samples of 2048 tokens.
_STREAMED_DOCUMENTS = 20_000


def read_documents(source: str) -> list[Document]:
    """Documents of a file, of `pydoc`, or of a hub data set.

    Raises:
        CalibrationError: no such file or data set, unreadable rows, nothing in it.
    """
    path = Path(source).expanduser()
    if source == "pydoc":
        documents: list[Document] = list(pydoc_documents())
    elif path.is_file():
        documents = list(_read_file(path))
    elif path.suffix in _SUFFIXES or path.is_dir() or source.startswith((".", "/", "~")):
        raise CalibrationError(f"no file {source}: a .txt, .json, .jsonl, .parquet or .pt file is wanted")
    else:
        documents = list(_read_hub(source))
    documents = [d for d in documents if (d.strip() if isinstance(d, str) else d)]
    if not documents:
        raise CalibrationError(f"no text in {source}: documents with at least one character are wanted")
    return documents


def pydoc_documents() -> Iterator[str]:
    """The reference manual that `help()` shows: some 400 kB of English, on every machine with Python."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]


def _read_file(path: Path) -> Iterator[Document]:
    try:
        if path.suffix == ".pt":
            yield from _rows(path, _token_tensors(path))
        elif path.suffix == ".parquet":
            yield from _rows(path, _parquet_rows(path))
        elif path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as lines:
                yield from _rows(path, _json_lines(lines))
        elif path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            yield from _rows(path, content if isinstance(content, list) else [content])
        else:
            yield path.read_text(encoding="utf-8")
    except (OSError, ValueError, RecursionError) as error:
        raise CalibrationError(
            f"{path} cannot be read: {error}; UTF-8 text, JSON or saved token ids are wanted"
        ) from error


def _json_lines(lines: Iterable[str]) -> Iterator[Any]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"line {number} is no JSON ({error.msg} at character {error.pos})"
                ) from error


def _token_tensors(path: Path) -> Iterator[list[int]]:
    """Token ids that torch saved: a tensor `[N, S]`, or a list of tensors `[S]` or `[1, S]`."""
    try:
        saved = torch.load(path, weights_only=True)
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


def _rows(path: Path, rows: Iterable[Any]) -> Iterator[Document]:
    for number, row in enumerate(rows):
        yield as_document(row, f"row {number} of {path}")


def as_document(row: Any, where: str) -> Document:
    """A row of a data set as a document; `where` names it in errors."""
    if isinstance(row, str):
        return row
    if isinstance(row, list) and all(type(token) is int and abs(token) < _TOO_LARGE for token in row):
        return row
    if isinstance(row, list) and all(isinstance(message, dict) for message in row):
        return row
    if isinstance(row, dict):
        for key in ("input_ids", "messages", *_TEXT_COLUMNS):
            if key in row:
                return as_document(row[key], where)
    raise CalibrationError(
        f"{where} is {_describe(row)}; wanted is a string, a list of token ids, or an object with one of the "
        f"keys input_ids, messages, {', '.join(_TEXT_COLUMNS)}"
    )


def _describe(row: Any) -> str:
    return f"an object with the keys {', '.join(map(str, row))}" if isinstance(row, dict) else repr(row)[:60]


def _parquet_rows(path: Path) -> Iterator[Any]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise CalibrationError(
            f"reading {path} needs pyarrow: pip install 'roundel[data]', or give the text as .jsonl"
        ) from error
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


def _read_hub(name: str) -> Iterator[Document]:
    try:
        import datasets
    except ImportError as error:
        raise CalibrationError(
            f"the hub data set {name} needs the datasets library: pip install 'roundel[data]', "
            "or give a file, `self` or `pydoc`"
        ) from error
    hub_id, configuration, split, streaming = _HUB_SETS.get(name, (name, None, "train", True))
    try:
        rows = datasets.load_dataset(hub_id, configuration, split=split, streaming=streaming)
        for number, row in enumerate(islice(rows, _STREAMED_DOCUMENTS if streaming else None)):
            yield as_document(row, f"row {number} of {hub_id}")
    except (OSError, ValueError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise CalibrationError(
            f"the data set {name} cannot be loaded ({first}); wanted is a file, `self`, `pydoc`, "
            f"{', '.join(_HUB_SETS)}, or the id of a hub data set that can be reached"
        ) from error
