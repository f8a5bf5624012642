"""Documents to token ids: `[nsamples, seqlen]`, every row full.

Documents are shuffled (unless `shuffle` is off), tokenized as far as is needed (pieces.py), each closed with the
end-of-text token (or, a chat, with its template's own end of turn), joined, and cut into rows, each of which begins as
the model's texts begin (prefix.py). Short texts are packed rather than dropped (the reference drops every document
shorter than seqlen), so no row has padding and no text is biased towards long documents. Token ids stay as they are
given: nothing is put in front of them, and rows that have the wanted length already are taken in order, so what another
tool was calibrated on can be given exactly.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from roundel.calibration.chats import Renderer
from roundel.calibration.forms import Document
from roundel.calibration.options import CalibrationOptions
from roundel.calibration.pieces import token_pieces
from roundel.calibration.prefix import text_prefix, with_prefix, without_prefix
from roundel.errors import CalibrationError


class TooLittleTextError(CalibrationError):
    """The documents have fewer tokens than are expected.

    Attributes:
        enough: samples of the wanted length that they suffice for.
    """

    enough = 0


def pack_documents(
    documents: Sequence[Document],
    tokenizer: Any | None,
    options: CalibrationOptions,
    renderer: Renderer | None = None,
    name: str = "",
    spare: int = 0,
) -> torch.Tensor:
    """Calibration rows from documents.

    Args:
        documents: strings, lists of token ids, or chats.
        tokenizer: needed unless all documents are token ids.
        options: nsamples, seqlen, add_bos, chat_template, seed.
        renderer: of chats; it keeps count of them.
        name: the source, if it is one of several with a number of samples each.
        spare: tokens that have to come behind those that are taken: the last ones of a text that is cut are others than
            those of the whole.

    Returns:
        `[nsamples, seqlen]` int64.

    Raises:
        TooLittleTextError: which says how much there is.
        CalibrationError: text without a tokenizer.
    """
    wanted, length = options.nsamples, options.seqlen
    ready = [d for d in documents if isinstance(d, list) and len(d) == length]
    if len(ready) == len(documents) and len(ready) >= wanted:
        return torch.tensor(ready[:wanted], dtype=torch.int64)

    renderer = renderer or Renderer(tokenizer, options.chat_template)
    prefix = row_prefix(documents, tokenizer, options)
    own = length - len(prefix)
    ordered = list(documents)
    if options.shuffle:
        random.Random(options.seed).shuffle(ordered)
    stream: list[int] = []
    for ids in (ids for document in ordered for ids in _tokenize(document, tokenizer, renderer, prefix)):
        stream.extend(ids)
        if len(stream) >= wanted * own + spare:
            break
    if len(stream) < wanted * own + spare:
        enough = len(stream) // own
        what = f"the calibration text of {name}" if name else "the calibration text"
        fewer = f"take {enough} samples of it" if name else f"set nsamples to {enough}"
        advice = f"give more text, or {fewer} or less" if enough else "give more text"
        error = TooLittleTextError(
            f"{what} has {len(stream)} tokens; {wanted} samples of {length} tokens are {wanted * own}: {advice}"
            + ("" if enough else f", or set seqlen below {len(stream)}")
        )
        error.enough = enough
        raise error
    rows = torch.tensor(stream[: wanted * own], dtype=torch.int64).view(wanted, own)
    return with_prefix(rows, prefix)


def row_prefix(
    documents: Sequence[Document], tokenizer: Any | None, options: CalibrationOptions
) -> list[int]:
    """What rows of these documents begin with; nothing where they are all token ids already.

    Raises:
        CalibrationError: it leaves no room in a row.
    """
    if tokenizer is None or not options.add_bos or all(map(_is_ids, documents)):
        return []
    prefix = text_prefix(tokenizer)
    if len(prefix) >= options.seqlen:
        raise CalibrationError(
            f"the tokenizer puts {len(prefix)} tokens in front of a text, and seqlen is {options.seqlen}: set seqlen "
            f"above {len(prefix)}, or add_bos=false"
        )
    return prefix


def check_ids(tokens: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Return `tokens` if every id is below the model's vocabulary size, else raise CalibrationError."""
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocabulary:
        found = low if low < 0 else high
        raise CalibrationError(
            f"token id {found} in the calibration data; the model knows 0 to {vocabulary - 1}: "
            "use the model's own tokenizer"
        )
    return tokens


def _is_ids(document: Document) -> bool:
    return isinstance(document, list)


def _tokenize(
    document: Document, tokenizer: Any | None, renderer: Renderer, prefix: Sequence[int]
) -> Iterator[list[int]]:
    if isinstance(document, list):
        yield document
        return
    if tokenizer is None:
        raise CalibrationError(
            "the model comes without a tokenizer, so text cannot be tokenized: give a file with input_ids"
        )
    text = renderer.text(document)
    if not text:
        return
    last: list[int] = []
    try:
        for number, ids in enumerate(token_pieces(text, tokenizer)):
            # A chat template writes the begin-of-text token itself: the row has one in front already.
            own = ids if number else without_prefix(ids, prefix)
            yield own
            last = own or last
    except (TypeError, UnicodeError) as error:
        start = ascii(text[:40])
        raise CalibrationError(
            f"the text that begins with {start} cannot be tokenized: it holds halves of surrogate pairs, perhaps; "
            "Unicode text is expected"
        ) from error
    end = tokenizer.eos_token_id
    if end is not None and last[-1:] != [end] and not renderer.closes(document, text):
        yield [end]
