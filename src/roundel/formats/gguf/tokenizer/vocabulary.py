"""The tokens of a GGUF file: text, kind and score of each row of the embeddings."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roundel.errors import FormatError
from roundel.formats.gguf.tokenizer.pre_tokenizers import pre_tokenizer_name
from roundel.formats.gguf.tokenizer.sentencepiece import (
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    Pieces,
    pieces_of,
    read_pieces,
)

_FILE = "tokenizer.model"
# Of added tokens that are never cut by scores, as llama.cpp's converter has it.
_ADDED_SCORE = -1000.0
_BLANK = "▁"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a file.

    Attributes:
        model: `gpt2` for byte-level BPE, `llama` for sentencepiece.
        pre: how texts are cut into words.
        tokens: texts, by id.
        kinds: `gguf.TokenType`, by id.
        scores: by id; None: merges decide.
        merges: None: scores decide.
        blank_first: a blank is put before a text; None: it is not asked for.
    """

    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    blank_first: bool | None = None


def vocabulary_of(tokenizer: Any, folder: Path | None, size: int) -> Vocabulary:
    """The tokens that llama.cpp needs to know.

    Args:
        tokenizer: of transformers.
        folder: with its files; None: there are none.
        size: rows of the embeddings.

    Raises:
        FormatError: llama.cpp has no such tokenizer, or Roundel cannot tell which.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    about = json.loads(backend.to_str()) if backend is not None else None
    file = folder / _FILE if folder is not None else None
    if about is not None and is_byte_level(about):
        found = _byte_level(about, tokenizer, size)
    elif file is not None and file.is_file():
        found = _sentencepiece(read_pieces(file.read_bytes()), tokenizer, size)
    elif about is not None and about["model"]["type"] == "BPE" and about["model"].get("byte_fallback"):
        found = _sentencepiece(pieces_of(about), tokenizer, size)
    else:
        kind = about["model"]["type"] if about is not None else "no tokenizer.json"
        raise FormatError(
            f"the tokenizer {type(tokenizer).__name__} ({kind}) is none that can be written for llama.cpp: byte-level "
            "BPE, or sentencepiece's BPE, is expected; take another --format, or --like base.gguf with a file that "
            "llama.cpp's converter made of the same model"
        )
    _check(found.tokens)
    return found


def is_byte_level(about: dict[str, Any]) -> bool:
    """Whether a tokenizer merges bytes, not letters.

    Args:
        about: a `tokenizer.json`.
    """
    return about["model"]["type"] == "BPE" and "'type': 'ByteLevel'" in repr(about.get("pre_tokenizer"))


def _byte_level(about: dict[str, Any], tokenizer: Any, size: int) -> Vocabulary:
    tokens, kinds = _empty(size)
    for text, number in about["model"]["vocab"].items():
        _put(tokens, kinds, number, text, NORMAL)
    _put_added(tokens, kinds, tokenizer)
    merges = [
        merge if isinstance(merge, str) else " ".join(part.replace(" ", "Ġ") for part in merge)
        for merge in about["model"]["merges"]
    ]
    tidy = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
    return Vocabulary("gpt2", pre_tokenizer_name(about, tidy=tidy), tokens, kinds, merges=merges)


def _sentencepiece(pieces: Pieces, tokenizer: Any, size: int) -> Vocabulary:
    tokens, kinds = _empty(size)
    scores = [10 * _ADDED_SCORE] * size
    for number, (text, kind) in enumerate(zip(pieces.texts, pieces.kinds, strict=True)):
        if text:
            _put(tokens, kinds, number, text, kind)
            scores[number] = pieces.scores[number]
    for number in _put_added(tokens, kinds, tokenizer):
        scores[number] = _ADDED_SCORE
    return Vocabulary("llama", "default", tokens, kinds, scores, blank_first=pieces.blank_first)


def _empty(size: int) -> tuple[list[str], list[int]]:
    return [f"[PAD{number}]" for number in range(size)], [int(UNUSED)] * size


def _put(tokens: list[str], kinds: list[int], number: int, text: str, kind: int) -> None:
    if number >= len(tokens):
        raise FormatError(
            f"the token {text!r} has the number {number}, and the model's embeddings have {len(tokens)} rows: "
            "llama.cpp needs a row for each token; resize the embeddings, or take the tokenizer that came with it"
        )
    tokens[number], kinds[number] = text, int(kind)


def _put_added(tokens: list[str], kinds: list[int], tokenizer: Any) -> list[int]:
    """The tokens that are found in a text before it is cut; their numbers."""
    for number, token in tokenizer.added_tokens_decoder.items():
        text = token.content
        control = token.special or _looks_special(text)
        # What is looked for is looked for in the text itself, where blanks are blanks.
        _put(
            tokens,
            kinds,
            number,
            text if control else text.replace(_BLANK, " "),
            CONTROL if control else USER_DEFINED,
        )
    return list(tokenizer.added_tokens_decoder)


def _looks_special(text: str) -> bool:
    """Tokens that some models add as ordinary ones, and that are no text all the same."""
    marks = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))  # noqa: RUF001
    return text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]") or any(
        text.startswith(first) and text.endswith(last) for first, last in marks
    )


def _check(tokens: list[str]) -> None:
    """llama.cpp takes no two tokens of the same text, and none without one."""
    seen: dict[str, int] = {}
    for number, text in enumerate(tokens):
        if seen.setdefault(text, number) != number or not text:
            raise FormatError(
                f"the tokens {seen[text]} and {number} are both {text!r}: llama.cpp expects each text once; take "
                "another --format"
            )
