"""From what the user gave to calibration tokens, with words and a fingerprint for the manifest."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import torch

from roundel.calibration.chats import Renderer
from roundel.calibration.options import CalibrationOptions
from roundel.calibration.pieces import CUT, PIECE
from roundel.calibration.portion import Need
from roundel.calibration.rows import as_document, extent, is_blank
from roundel.calibration.self_text import any_tokens, sample_from_model
from roundel.calibration.sources import SELF, Source, parse_sources, share_samples, total_samples
from roundel.calibration.tables import is_ids
from roundel.calibration.texts import Documents, read_documents
from roundel.calibration.tokens import TooLittleTextError, check_ids, pack_documents
from roundel.errors import CalibrationError
from roundel.model.source import positions
from roundel.model.text_path import text_model
from roundel.system.progress import Progress

# Bytes of a character in memory (Python spends up to four, on most texts one), what a tokenizer holds of one meanwhile,
# and what a token takes on its way to the rows, first as an integer of Python's: as measured.
_CHARACTER, _TOKENIZED, _TOKEN = 2, 180, 52
SELF_WRITTEN = "text sampled from the model itself"

CalibrationSource = str | Path | Sequence[Any] | torch.Tensor
Options = TypeVar("Options", bound=CalibrationOptions)


@dataclass(frozen=True)
class Calibration:
    """Calibration tokens.

    Attributes:
        tokens: `[nsamples, seqlen]` int64.
        source: where they come from and what was taken for what, in words.
        fingerprint: hash of the tokens.
        reading: bytes that reading and tokenizing took, as far as they are counted (for the plan).
    """

    tokens: torch.Tensor
    source: str
    fingerprint: str
    reading: int = 0

    def described(self) -> dict[str, Any]:
        """What a manifest says of them."""
        samples, length = self.tokens.shape
        return {
            "source": self.source,
            "samples": samples,
            "tokens_per_sample": length,
            "fingerprint": self.fingerprint,
        }


def gather_calibration(
    source: CalibrationSource | None,
    model: Any,
    tokenizer: Any | None,
    options: CalibrationOptions,
    progress: Progress,
    author: Callable[[], Any] | None = None,
    *,
    unwritten: bool = False,
) -> Calibration:
    """Calibration tokens for a model.

    Args:
        source: what the caller gave (files, names, documents, tensor of ids); None: what the options say.
        model: the original model; its tensors may be absent.
        tokenizer: the model's, or None.
        options: nsamples, seqlen, seed, add_bos, chat_template, encoding, calibration.
        progress: gets the steps of sampling, and what was taken for what.
        author: opens the original model with all its tensors, to write the text itself for `self`; None: `model` is.
        unwritten: of `self` any ids will do, for a plan.

    Raises:
        CalibrationError: unreadable, too short, rows longer than the model's positions, or ids that the model
            does not know.
    """
    reading = 0
    limit = positions(model)
    if limit is not None and options.seqlen > limit:
        raise CalibrationError(
            f"seqlen {options.seqlen} exceeds the model's {limit} positions: set seqlen to {limit} or less"
        )
    source = options.calibration if source is None else source
    if source is None:
        progress.say(
            "No calibration data given: the model writes its own (deterministic, offline). "
            "Text like that of your use is better: --calibration FILE"
        )
        source = SELF
    if isinstance(source, torch.Tensor):
        tokens, words = _rows_of(source, options), "token ids given in memory"
    elif isinstance(source, str) and source == SELF and unwritten:
        tokens, words = any_tokens(model, tokenizer, options), SELF_WRITTEN
    elif isinstance(source, str) and source == SELF:
        with progress.stage("Sampling calibration text", options.nsamples):
            whole = author() if author else model

            def rows_done(rows: int) -> None:
                progress.advance(rows)
                progress.check_stop()

            tokens = sample_from_model(whole, tokenizer, options, rows_done)
        words = SELF_WRITTEN
    else:
        tokens, words, reading = _from_texts(source, tokenizer, options)
        progress.say(f"Calibration: {words}")
    check_ids(tokens, text_model(model).get_input_embeddings().weight.shape[0])
    digest = blake2b(tokens.numpy().tobytes(), digest_size=16).hexdigest()
    return Calibration(tokens, words, digest, reading)


def for_sources(options: Options, source: CalibrationSource | None) -> Options:
    """The same options with as many samples as the sources say in all.

    Args:
        options: nsamples, calibration.
        source: what the caller gave; None: what the options say.

    Raises:
        CalibrationError: it cannot be sampled so.
    """
    total = counted_samples(options, source)
    source = options.calibration if source is None else source
    if total is None or "nsamples" in options.model_fields_set:
        if isinstance(source, str) and source != SELF:
            share_samples(parse_sources(source), options.nsamples)
        return options
    return options.model_copy(update={"nsamples": total})


def counted_samples(options: CalibrationOptions, source: CalibrationSource | None) -> int | None:
    """How many samples the sources give in all, where each of them says how many it gives.

    Raises:
        CalibrationError: a number cannot be read.
    """
    source = options.calibration if source is None else source
    return total_samples(parse_sources(source)) if isinstance(source, str) else None


def _from_texts(
    source: str | Path | Iterable[Any], tokenizer: Any | None, options: CalibrationOptions
) -> tuple[torch.Tensor, str, int]:
    """Rows of files and names, or of documents in memory, what was taken for what, and the bytes that it took."""
    if isinstance(source, str | Path):
        sources = parse_sources(source) if isinstance(source, str) else [Source(str(source))]
        shares = share_samples(sources, options.nsamples)
        if any(place.place == SELF for place in sources):
            raise CalibrationError(
                "`self` stands alone, without field and number: leave the others out, or give files only; nsamples "
                "says how many samples the model writes"
            )
        needs = [
            Need(
                tokens=share * options.seqlen,
                row=options.seqlen,
                seed=options.seed if options.shuffle else None,
            )
            for share in shares
        ]
        read = [
            read_documents(place, options.encoding, need) for place, need in zip(sources, needs, strict=True)
        ]
        decoded = any(documents.decoded for documents in read)
    else:
        sources, shares, read, decoded = [Source("")], [options.nsamples], [_in_memory(source)], False
        needs = [Need(tokens=0)]
    if options.encoding and not decoded:
        raise CalibrationError(
            f"encoding={options.encoding} is for files of text, and there are none: leave it out"
        )
    parts, words, held, longest = [], [], 0, 0
    for place, share, documents, need in zip(sources, shares, read, needs, strict=True):
        some = options.model_copy(update={"nsamples": share})
        name = place.place if len(sources) > 1 or place.samples else ""
        tokens, documents, told = _packed(place, documents, need, tokenizer, some, name)
        parts.append(tokens)
        held += documents.held
        longest = max(longest, *map(extent, documents.documents))
        where = f"{place.place}: " if place.place else ""
        words.append(f"{where}{told}, {share} samples")
    rows = torch.cat(parts)
    if len(parts) > 1 and options.shuffle:
        # So that the last rows, which are held out, are not those of one source alone.
        order = list(range(len(rows)))
        random.Random(options.seed).shuffle(order)
        rows = rows[order]
    taken = _CHARACTER * held + _TOKENIZED * min(longest, PIECE) + _TOKEN * options.nsamples * options.seqlen
    return rows, "; ".join(words), taken


def _packed(
    place: Source,
    documents: Documents,
    need: Need,
    tokenizer: Any | None,
    options: CalibrationOptions,
    name: str,
) -> tuple[torch.Tensor, Documents, str]:
    """Rows of one source, its documents, and what was taken for what; where they are not enough, more is read."""
    while True:
        renderer = Renderer(tokenizer, options.chat_template)
        cut = documents.partly and documents.plain and need.seed is None
        try:
            rows = pack_documents(documents.documents, tokenizer, options, renderer, name, CUT if cut else 0)
        except TooLittleTextError:
            if not documents.partly:
                raise
            need = need.larger
            documents = read_documents(place, options.encoding, need)
            continue
        return rows, documents, documents.summary + (f", {renderer.summary}" if renderer.summary else "")


def _in_memory(rows: Iterable[Any]) -> Documents:
    """Documents that the caller has: strings, chats, token ids, rows of a data set, a table of pandas."""
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        rows = rows.to_dict("records")
    if isinstance(rows, Mapping):
        keys = ", ".join(map(str, rows))
        raise CalibrationError(
            f"the calibration data is a mapping with the keys {keys}: give a list of documents, or one of its values"
        )
    documents = [as_document(row, f"document {n}") for n, row in enumerate(rows)]
    kept = [document for document in documents if not is_blank(document)]
    if not kept:
        raise CalibrationError(
            "no text in the documents given in memory: one with at least a character is expected"
        )
    return Documents(kept, "documents given in memory")


def _rows_of(tokens: torch.Tensor, options: CalibrationOptions) -> torch.Tensor:
    if tokens.ndim != 2 or not is_ids(tokens):
        raise CalibrationError(
            f"the calibration tensor is {tuple(tokens.shape)} {tokens.dtype}; integer ids [samples, tokens] are "
            "expected"
        )
    return pack_documents(tokens.tolist(), None, options)
