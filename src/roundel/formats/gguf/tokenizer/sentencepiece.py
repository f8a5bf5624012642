"""Vocabulary and scores of sentencepiece: from its own file, or from the merges of a `tokenizer.json`.

llama.cpp merges the two neighbours whose union has the best score. The file `tokenizer.model` is a message of protobuf
(https://github.com/google/sentencepiece, `sentencepiece_model.proto`): its field 1 repeats for each piece, with text,
score and kind in fields 1 to 3; how it was trained is in field 2 (there, field 3: 2 for BPE), how texts are normalized
in field 3 (there, field 3: whether a blank is put before).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from roundel.errors import FormatError

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_BPE = 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens; sentencepiece and GGUF number them alike."""


@dataclass(frozen=True)
class Pieces:
    """A vocabulary.

    Attributes:
        texts: of the tokens, by id.
        scores: the higher the earlier two tokens are merged to this one.
        kinds: as above.
        blank_first: a blank is put before a text.
    """

    texts: list[str]
    scores: list[float]
    kinds: list[int]
    blank_first: bool


def read_pieces(data: bytes) -> Pieces:
    """The vocabulary in a `tokenizer.model`.

    Args:
        data: the whole file.

    Raises:
        FormatError: it is damaged, or not of the kind that merges neighbours.
    """
    pieces = Pieces([], [], [], True)
    kind, blank = 1, True
    try:
        for field, value in _fields(data):
            if field == _PIECES:
                about = dict(_fields(value))
                pieces.texts.append(about[1].decode("utf-8"))
                pieces.scores.append(struct.unpack("<f", about.get(2, bytes(4)))[0])
                pieces.kinds.append(about.get(3, NORMAL))
            elif field == _TRAINER:
                kind = dict(_fields(value)).get(3, kind)
            elif field == _NORMALIZER:
                blank = bool(dict(_fields(value)).get(3, True))
    except (IndexError, KeyError, ValueError, struct.error, AttributeError, TypeError) as error:
        raise FormatError(
            f"tokenizer.model cannot be read ({error}): a file of sentencepiece is expected; take the one that came "
            "with the weights"
        ) from error
    if kind != _BPE:
        raise FormatError(
            "tokenizer.model is not of sentencepiece's kind BPE: llama.cpp would cut texts otherwise, so only BPE "
            "can be written; take another --format"
        )
    return Pieces(pieces.texts, pieces.scores, pieces.kinds, blank)


def pieces_of(about: dict[str, Any]) -> Pieces:
    """The vocabulary of a BPE tokenizer that was made of sentencepiece's; its scores by the order of its merges.

    Args:
        about: a `tokenizer.json`.

    Raises:
        FormatError: its merges are not all that sentencepiece would make.
    """
    vocabulary: dict[str, int] = about["model"]["vocab"]
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in about["model"]["merges"]]
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    _check_merges(vocabulary, ranks, {(left, right) for left, right in merges})
    size = max(vocabulary.values()) + 1
    texts, scores, kinds = [""] * size, [-float(len(merges))] * size, [UNUSED] * size
    for text, number in vocabulary.items():
        texts[number] = text
        scores[number] = -float(ranks.get(text, len(merges)))
        kinds[number] = BYTE if _is_byte(text) else NORMAL
    return Pieces(texts, scores, kinds, _blank_first(about))


def _check_merges(vocabulary: dict[str, int], ranks: dict[str, int], merges: set[tuple[str, str]]) -> None:
    """llama.cpp merges whatever two tokens make a third; so must the tokenizer."""
    for text in ranks:
        for cut in range(1, len(text)):
            pair = text[:cut], text[cut:]
            if pair not in merges and pair[0] in vocabulary and pair[1] in vocabulary:
                raise FormatError(
                    f"the tokenizer does not merge {pair[0]!r} and {pair[1]!r} to its token {text!r}, and llama.cpp "
                    "would: a vocabulary of sentencepiece is expected where bytes have tokens of their own; take "
                    "another --format, or --like base.gguf with a file that llama.cpp's converter made of the model"
                )


def _blank_first(about: dict[str, Any]) -> bool:
    text = repr(about.get("normalizer")), repr(about.get("pre_tokenizer"))
    return (
        "'Prepend'" in text[0]
        or "'prepend_scheme': 'always'" in text[1]
        or "'prepend_scheme': 'first'" in text[1]
    )


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field of a message: bytes, or an integer."""
    at = 0
    while at < len(data):
        tag, at = _integer(data, at)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _integer(data, at)
            yield field, value
            continue
        if wire == 2:
            length, at = _integer(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + length > len(data):
            raise ValueError(f"it ends at byte {len(data)}, within a field")
        yield field, data[at : at + length]
        at += length


def _integer(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
