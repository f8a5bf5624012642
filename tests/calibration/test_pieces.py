"""A text tokenized in pieces has the tokens of one call, with every kind of tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from roundel.calibration.pieces import token_pieces
from zoo import manual_text
from zoo.prefixes import FORMS, tokenizer_with

TEXT = manual_text()[:60_000]
# Llama 3's: runs of digits by threes, blanks and line ends that hang together with what stands around them.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def trained(
    model: Any, trainer: Any, before: Any = None, normalizer: Any = None, decoder: Any = None
) -> PreTrainedTokenizerFast:
    backend = Tokenizer(model)
    if before is not None:
        backend.pre_tokenizer = before
    if normalizer is not None:
        backend.normalizer = normalizer
    if decoder is not None:
        backend.decoder = decoder
    backend.train_from_iterator(TEXT.split("\n"), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<e>")


def of_words() -> Any:
    return trained(
        models.BPE(),
        trainers.BpeTrainer(vocab_size=900, special_tokens=["<e>"], show_progress=False),
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        ),
    )


def like_sentencepiece() -> Any:
    """Llama 2's: no words, a blank put in front of the text, what is unknown in bytes."""
    special = ["<e>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return trained(
        models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True),
        trainers.BpeTrainer(vocab_size=1200, special_tokens=special, show_progress=False),
        normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        decoder=decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    )


def of_unigrams() -> Any:
    return trained(
        models.Unigram(),
        trainers.UnigramTrainer(vocab_size=500, special_tokens=["<e>", "<u>"], unk_token="<u>", show_progress=False),
        pre_tokenizers.Metaspace(),
        normalizers.NFKC(),
    )  # fmt: skip


KINDS: dict[str, Callable[[], Any]] = {
    "words": of_words,
    "SentencePiece": like_sentencepiece,
    "unigrams": of_unigrams,
    **{f"the zoo's, {form}": (lambda form=form: tokenizer_with(FORMS[form][0])) for form in FORMS},
}
MADE: dict[str, Any] = {}


def tokenizer_of(kind: str) -> Any:
    return MADE.setdefault(kind, KINDS[kind]())


def same(text: str, tokenizer: Any, piece: int, overlap: int, special: bool) -> None:
    pieces = list(token_pieces(text, tokenizer, special=special, piece=piece, overlap=overlap))
    whole = tokenizer(text, add_special_tokens=special)["input_ids"]
    assert [token for ids in pieces for token in ids] == whole


ODD = {
    "prose": TEXT,
    "digits": "1234567890" * 800,
    "noughts": "x" + "0" * 7000 + " and on " * 300,
    "blanks": "a" + " " * 6000 + "b" * 6000 + "\n" * 3000 + "end",
    "one word": "abcabcab" * 1500,
    "line ends": "one.\r\n\r\n two \n\n\n\n three\t\t!!!\n" * 400,
    "letters in bytes": "漢字かな交じり文、🙂🙃 çédille — “quoted” " * 300,
    "halves of graphemes": "🏳️‍🌈👩‍👩‍👧‍👦é̂" * 500,
}


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ODD)
def test_the_tokens_are_those_of_one_call(text: str, kind: str, special: bool) -> None:
    same(ODD[text], tokenizer_of(kind), 2048, 512, special)


@settings(max_examples=60)
@given(
    parts=st.lists(
        st.one_of(
            st.integers(0, 40_000).map(lambda start: TEXT[start : start + 900]),
            st.text(max_size=40),
            st.text(st.sampled_from(" \n\t.a1漢"), max_size=300),
        ),
        min_size=2,
        max_size=12,
    ),
    kind=st.sampled_from(list(KINDS)),
    piece=st.integers(700, 3000),
)
def test_of_any_text(parts: list[str], kind: str, piece: int) -> None:
    same("".join(parts), tokenizer_of(kind), piece, 400, special=False)


def test_of_a_real_tokenizer(tinystories: Path, shared_data: Path, load_model) -> None:
    _, tokenizer = load_model(tinystories)
    text = (shared_data / "wikitext2" / "wiki.test.raw").read_text(encoding="utf-8")
    same(text, tokenizer, 1 << 18, 1 << 12, special=True)


def test_no_more_is_tokenized_than_is_asked_for() -> None:
    class Counting:
        is_fast = True
        asked = 0

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            Counting.asked += len(text)
            return {"input_ids": [ord(letter) for letter in text]}

    pieces = token_pieces("some words " * 10_000, Counting(), piece=1000, overlap=100)
    assert len(next(pieces)) < 1000
    assert Counting.asked < 2500
