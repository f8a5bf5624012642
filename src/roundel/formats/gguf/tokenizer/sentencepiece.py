"""Vocabulary and scores of sentencepiece: from its own file, or from the merges of a `tokenizer.json`.

llama.cpp merges the two neighbours whose union has the best score. The file `tokenizer.model` is a message of protobuf
(https://github.com/google/sentencepiece, `sentencepiece_model.proto`): its field 1 repeats for each piece, with text,
score and kind in fields 1 to 3; how it was trained is in field 2 (there, field 3: 2 for BPE), how texts are normalized
in field 3 (there, field 3: whether a blank is put before).
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from roundel.calibration.texts import pydoc_documents
from roundel.errors import FormatError
from roundel.formats.gguf.tokenizer.merging import merged

_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_BPE = 2
_BLANK = "▁"
# Of the text on which merges are compared: characters.
_PROBE = 200_000
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
        FormatError: it merges fewer pairs than sentencepiece would, and that shows.
    """
    vocabulary: dict[str, int] = about["model"]["vocab"]
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in about["model"]["merges"]]
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        ranks.setdefault(left + right, rank)
    if not _all_listed(vocabulary, ranks, {(left, right) for left, right in merges}):
        _check_on_text(about, {text: -float(rank) for text, rank in ranks.items()})
    size = max(vocabulary.values()) + 1
    texts, scores, kinds = [""] * size, [-float(len(merges))] * size, [UNUSED] * size
    for text, number in vocabulary.items():
        texts[number] = text
        scores[number] = -float(ranks.get(text, len(merges)))
        kinds[number] = BYTE if _is_byte(text) else NORMAL
    return Pieces(texts, scores, kinds, _blank_first(about))


def _all_listed(vocabulary: dict[str, int], ranks: dict[str, int], merges: set[tuple[str, str]]) -> bool:
    """Whether a tokenizer merges any two tokens that make a third, as llama.cpp does: sentencepiece's do."""
    return all(
        (text[:cut], text[cut:]) in merges or text[:cut] not in vocabulary or text[cut:] not in vocabulary
        for text in ranks
        for cut in range(1, len(text))
    )


def _check_on_text(about: dict[str, Any], scores: dict[str, float]) -> None:
    """Where it merges fewer, that need not show: whatever comes before a merge in the order mostly comes before it."""
    tokenizer = Tokenizer.from_str(json.dumps(about))
    letters = set("".join(about["model"]["vocab"]))
    for line in "\n".join(pydoc_documents())[:_PROBE].splitlines():
        line = line.strip()
        spaced = _BLANK + line.replace(" ", _BLANK)
        if not line or not letters.issuperset(spaced):
            continue
        mine = tokenizer.encode(line, add_special_tokens=False).tokens
        theirs = merged(spaced if _blank_first(about) else spaced[1:], scores)
        if mine != theirs:
            raise FormatError(
                f"the tokenizer cuts {line[:40]!r} into {len(mine)} tokens, and llama.cpp would cut it into "
                f"other ones ({len(theirs)}): it merges fewer pairs than sentencepiece would; take another --format, "
                "or --like base.gguf with a file that llama.cpp's converter made of the model"
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
