"""Tokenizing a long text in pieces, with the tokens of one call.

A tokenizer keeps some hundred bytes for every character while it works: gigabytes for a text of some megabytes. So a
long text is tokenized in pieces that overlap. The overlap is tokenized by itself too: it ends where the first piece
ends, and begins where the second one does, so its tokens are the first piece's last ones and the second's first ones,
but for those at its own two ends. In its middle one goes over from the one piece to the other:

    first    ... t t t t t t x        x: another token than in the whole text, which goes on
    overlap        y t t t t x        y: the same, since the text began before
    second         y t t t t t ...

What a tokenizer makes of a place depends on what is near it, so the pieces agree with the whole where they agree with
the overlap; where they do not, the piece is made longer, up to all the text. (To cut at blanks would be simpler, but
many tokenizers look at what stands around them, or put a blank in front of a text. Offsets in the text would say where
tokens are, but are wrong where letters are spelled in bytes.)
"""

from collections.abc import Iterator
from typing import Any

from roundel.calibration.prefix import special_frame

# Characters of a piece, and of the overlap of two.
PIECE, _OVERLAP = 1 << 18, 1 << 12
# Tokens beyond the join that have to be equal at least.
_EQUAL = 16
# Tokens at the end of a text that is cut that may be others than those of the whole.
CUT = 256


def token_pieces(
    text: str, tokenizer: Any, *, special: bool = False, piece: int = PIECE, overlap: int = _OVERLAP
) -> Iterator[list[int]]:
    """The token ids of a text, piece by piece.

    Args:
        text: of any length.
        tokenizer: the model's.
        special: with the special tokens that the tokenizer puts around a text.
        piece: characters of a piece.
        overlap: characters that two pieces share; less than a piece.
    """
    frame = special_frame(tokenizer) if special and len(text) > piece else ([], [])
    if len(text) <= piece or frame is None:
        yield _ids(text, tokenizer, special)
        return
    before, behind = frame
    if before:
        yield before
    first, end, skipped = 0, piece, 0
    ids = _ids(text[:end], tokenizer)
    while end < len(text):
        start, reach = end - overlap, min(len(text), end - overlap + piece)
        following = _ids(text[start:reach], tokenizer)
        shared = _ids(text[start:end], tokenizer)
        middle = len(shared) // 2
        left = len(ids) - (len(shared) - middle)
        agree = (
            middle >= _EQUAL
            and left >= _EQUAL
            and ids[left - _EQUAL :] == shared[middle - _EQUAL :]
            and following[: middle + _EQUAL] == shared[: middle + _EQUAL]
        )
        if not agree:
            end = min(len(text), first + 2 * (end - first))
            ids = _ids(text[first:end], tokenizer)[skipped:]
            continue
        yield ids[:left]
        first, end, skipped = start, reach, middle
        ids = following[skipped:]
    yield ids
    if behind:
        yield behind


def _ids(text: str, tokenizer: Any, special: bool = False) -> list[int]:
    # No warning about texts longer than the model's window: they are cut into rows afterwards.
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
