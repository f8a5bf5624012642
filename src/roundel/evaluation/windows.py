"""Held-out text as windows of token ids, by the papers' conventions.

A text is tokenized as in ONE call, cut into windows without overlap, and the tail is dropped. Where only the first
windows are asked for, a local text is read, and any text tokenized, only as far as they reach: the tokens are those of
one call all the same (calibration/pieces.py). Every window of a local text
begins as the model's texts begin, with what its tokenizer puts in front of them (calibration/prefix.py). A local text
file is taken as it is; the documents of other local files (calibration/texts.py reads them: chats through the model's
chat template, a field by its name) are joined by blanks.

Data sets, from the hub or from local copies (text_files.py), are joined and cut as in the papers, where only the first
window begins so: fine for most models, but some (Gemma) are lost without their begin-of-text token.

    wikitext2  raw test split, documents joined by two newlines
    ptb        validation split, sentences joined by two newlines;  ptb_new: test split, joined by blanks
    c4         256 random windows of documents of the first validation shard, seed 0 (drawn as in GPTQ)
    c4_new     the first 1100 documents of that shard, joined by blanks, 256 windows at most
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from roundel.calibration.chats import Renderer
from roundel.calibration.pieces import CUT, PIECE, token_pieces
from roundel.calibration.portion import Need
from roundel.calibration.prefix import describe_prefix, text_prefix, with_prefix
from roundel.calibration.sources import Source, parse_sources
from roundel.calibration.texts import Documents, pydoc_documents, read_documents
from roundel.errors import CalibrationError
from roundel.evaluation.defaults import WINDOW
from roundel.evaluation.text_files import local_rows

_C4_SHARD = {"data_files": {"validation": "en/c4-validation.00000-of-00008.json.gz"}}
# name: (hub id, configuration, extra arguments, split, column, joint, documents, what it is)
_JOINED: dict[str, tuple[str, str | None, dict[str, Any], str, str, str, int | None, str]] = {
    "wikitext2": (
        "Salesforce/wikitext", "wikitext-2-raw-v1", {}, "test", "text", "\n\n", None,
        "WikiText-2 raw test, documents joined by two newlines",
    ),
    "ptb": (
        "ptb-text-only/ptb_text_only", None, {}, "validation", "sentence", "\n\n", None,
        "PTB validation, sentences joined by two newlines",
    ),
    "ptb_new": (
        "ptb-text-only/ptb_text_only", None, {}, "test", "sentence", " ", None,
        "PTB test, sentences joined by blanks",
    ),
    "c4_new": (
        "allenai/c4", None, _C4_SHARD, "validation", "text", " ", 1100,
        "C4 validation, first 1100 documents joined by blanks",
    ),
}  # fmt: skip
_C4_WINDOWS = 256
# Documents of the shard longer than 2048 tokens are one in forty.
_PATIENCE = 20_000
# Characters tokenized at a time where so many tokens are enough: some more than they commonly have, and at least.
_CHARACTERS, _SHORT_PIECE = 6, 1 << 14
_LIMITS = {"c4_new": _C4_WINDOWS}


@dataclass(frozen=True)
class EvaluationText:
    """Token windows and the words that say how they came about.

    Attributes:
        name: as it was asked for.
        windows: `[N, S]` int64.
        convention: what was joined and cut how, for printing beside every figure.
        left_out: what the tokenizer puts in front of a text, where most windows begin without it.
    """

    name: str
    windows: torch.Tensor
    convention: str
    left_out: tuple[int, ...] = ()


def evaluation_windows(
    text: str,
    tokenizer: Any,
    window: int | None = None,
    limit: int | None = None,
    data_dir: Path | None = None,
    add_bos: bool | None = None,
    encoding: str | None = None,
    *,
    longest: int = WINDOW,
) -> EvaluationText:
    """Windows of local files, of `pydoc`, or of a data set of the papers (from the hub or from local copies).

    Args:
        text: a path, which a field may follow; `pydoc`, wikitext2, ptb, ptb_new, c4 or c4_new.
        tokenizer: the original model's.
        window: tokens per window; None: `longest`, or of a shorter text all of it.
        limit: at most so many windows, from the beginning.
        data_dir: folder with local copies of data sets; None: the hub's.
        add_bos: every window begins with what the tokenizer puts in front of a text; None: those of local texts do, and
            those of data sets as in the papers.
        encoding: of local text files without a byte order mark; None: UTF-8.
        longest: tokens that the models reach.

    Raises:
        CalibrationError: no such text, or less than one window of it.
    """
    papers = text in (*_JOINED, "c4") and not Path(text).is_file()
    prefix = text_prefix(tokenizer)
    begun = bool(prefix) and (not papers if add_bos is None else add_bos)
    front = prefix if begun else []
    most = longest if window is None else window
    if len(front) >= most:
        raise CalibrationError(
            f"a window of {most} tokens holds nothing but the {len(front)} that the tokenizer puts in front of a "
            "text: a larger --window is expected"
        )

    def tokenize(content: str, wanted: int | None = None) -> torch.Tensor:
        found, count = [torch.empty(0, dtype=torch.int64)], 0
        piece = PIECE if wanted is None else min(PIECE, max(_SHORT_PIECE, _CHARACTERS * wanted))
        for ids in token_pieces(content, tokenizer, special=not begun, piece=piece):
            found.append(torch.tensor(ids, dtype=torch.int64))
            count += len(ids)
            if wanted is not None and count >= wanted:
                break
        return torch.cat(found)

    if text == "c4" and papers:
        rows = _c4_windows(tokenize, most - len(front), data_dir)[:limit]
        words = f"C4 validation, {len(rows)} random windows of {most} tokens, seed 0"
    else:
        count = min((most for most in (limit, _LIMITS.get(text)) if most), default=None)
        wanted = None if count is None else count * (most - len(front)) + CUT
        need = None if wanted is None else Need(tokens=wanted)
        content, joined, partly = _read(text, data_dir, encoding, tokenizer, need)
        ids = tokenize(content, wanted)
        while partly and need is not None and wanted is not None and len(ids) < wanted:
            need = need.larger
            content, joined, partly = _read(text, data_dir, encoding, tokenizer, need)
            ids = tokenize(content, wanted)
        if window is None:
            most = max(2, min(most, len(front) + len(ids)))
        rows = _cut(text, ids, most - len(front), limit)
        words = f"{joined}; {len(rows)} window{'s' * (len(rows) > 1)} of {most} tokens without overlap"
    if prefix:
        words += f", {'each begins with' if begun else 'cut without'} {describe_prefix(prefix, tokenizer)}"
    return EvaluationText(text, with_prefix(rows, front), words, () if begun else tuple(prefix))


def _cut(text: str, ids: torch.Tensor, window: int, limit: int | None) -> torch.Tensor:
    count = len(ids) // window
    if count == 0:
        raise CalibrationError(
            f"{text} has {len(ids)} tokens; one window of {window} is expected: give more text or a smaller --window"
        )
    count = min(count, limit or count, _LIMITS.get(text, count))
    return ids[: count * window].view(count, window)


def check_text(text: str, encoding: str | None = None) -> None:
    """Raise CalibrationError where there is no such text, or a local one is unreadable, before any work for it."""
    place = _local(text)
    if place is not None:
        _documents(place, encoding, Need(tokens=0))
    elif text not in (*_JOINED, "c4", "pydoc"):
        raise _unknown(text)


def _unknown(text: str) -> CalibrationError:
    known = ", ".join(sorted([*_JOINED, "c4", "pydoc"]))
    return CalibrationError(f"no text {text}: a local text file or one of {known} is expected")


def _local(text: str) -> Source | None:
    """The local place that a text names, if it does."""
    places = parse_sources(text)
    if not any(place.is_local for place in places):
        return None
    if len(places) > 1 or places[0].samples is not None:
        raise CalibrationError(
            f"{text} is not one text: FILE or FILE:FIELD is expected, without a number; give --text several times for "
            "several"
        )
    return places[0]


def _documents(place: Source, encoding: str | None, need: Need | None) -> Documents:
    """The documents of a local place."""
    found = read_documents(place, encoding, need)
    if any(isinstance(document, list) for document in found.documents):
        raise CalibrationError(f"{place.place} holds token ids: documents of text are expected")
    return found


def _read(
    text: str, data_dir: Path | None, encoding: str | None, tokenizer: Any, need: Need | None
) -> tuple[str, str, bool]:
    """A text, what it is, and whether there is more of it."""
    place = _local(text)
    if place is not None:
        found = _documents(place, encoding, need)
        renderer = Renderer(tokenizer, None)
        texts = [renderer.text(document) for document in found.documents if not isinstance(document, list)]
        if found.plain and len(texts) == 1:
            much = "from its beginning" if found.partly else "whole file"
            return texts[0], f"{place.path.name}, {much}, one tokenizer call", found.partly
        told = f", {renderer.summary}" if renderer.summary else ""
        words = f"{place.path.name}: {found.summary}{told}, {len(texts)} documents joined by blanks, one tokenizer call"
        return " ".join(texts), words, found.partly
    if text == "pydoc":
        return (
            "\n\n".join(pydoc_documents()),
            "Python's reference manual, topics joined by blank lines",
            False,
        )
    if text in _JOINED:
        hub_id, configuration, extra, split, column, joint, most, words = _JOINED[text]
        if data_dir is not None:
            return joint.join(local_rows(text, data_dir)[:most]), words, False
        rows = _load(text, hub_id, configuration, split, extra)
        return joint.join(rows[:most][column]), words, False
    raise _unknown(text)


def _load(name: str, hub_id: str, configuration: str | None, split: str, extra: dict[str, Any]) -> Any:
    try:
        import datasets

        return datasets.load_dataset(hub_id, configuration, split=split, **extra)
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise CalibrationError(
            f"{name} cannot be loaded ({type(error).__name__}): pip install 'roundel[data]' and reach the "
            "hub, or give a local file with --text, or a folder with a copy of it with --data-dir"
        ) from error


def _c4_windows(tokenize: Callable[[str], torch.Tensor], window: int, data_dir: Path | None) -> torch.Tensor:
    """Random documents longer than a window, and a random window of each."""
    if data_dir is None:
        documents = _load("c4", "allenai/c4", None, "validation", _C4_SHARD)
    else:
        documents = [{"text": text} for text in local_rows("c4", data_dir)]
    draw = random.Random(0)
    windows: list[torch.Tensor] = []
    short = 0
    while len(windows) < _C4_WINDOWS:
        document = documents[draw.randint(0, len(documents) - 1)]["text"]
        ids = tokenize(document)
        if len(ids) > window:
            first = draw.randint(0, len(ids) - window - 1)
            windows.append(ids[first : first + window])
            continue
        short += 1
        if not windows and short > _PATIENCE:
            raise CalibrationError(
                f"none of {short} documents of c4 is longer than {window} tokens: a smaller --window is expected"
            )
    return torch.stack(windows)
