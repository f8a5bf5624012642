"""Pieces of a text: together the text, each whole characters, and none later than it must."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import roundel
from roundel.model.streamer import Streamer
from zoo import zoo_model

BYTES = [f"<0x{value:02X}>" for value in range(256)]
WORDS = ["▁a", "▁word", "b", "\n", "é", "▁"]


def with_byte_tokens() -> Any:
    """As SentencePiece has them: spaces belong to words, the first is left out, unknown characters are bytes."""
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<end>", *BYTES, *WORDS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>")


TOKENIZERS = {"bytes": with_byte_tokens(), "GPT-2's": AutoTokenizer.from_pretrained(zoo_model("gpt2"))}


def streamed(tokenizer: Any, prompt: list[int], new: list[int], **how: Any) -> tuple[list[str], Streamer]:
    pieces: list[str] = []
    streamer = Streamer(tokenizer, pieces.append, **how)
    streamer.put(torch.tensor([prompt]))
    for token in new:
        streamer.put(torch.tensor([token]))
    streamer.end()
    return pieces, streamer


def characters(tokenizer: Any, text: str) -> list[int]:
    """A token for each byte, where the tokenizer has such tokens."""
    if tokenizer is TOKENIZERS["bytes"]:
        return [2 + byte for byte in text.encode()]
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=12), with_prompt=st.booleans())
def test_pieces_of_any_text_are_whole_characters_and_together_the_text(
    name: str, text: str, with_prompt: bool
) -> None:
    tokenizer = TOKENIZERS[name]
    ids = characters(tokenizer, text)
    whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    prompt, new = (ids[:1], ids[1:]) if with_prompt else ([], ids)
    pieces, streamer = streamed(tokenizer, prompt, new, with_prompt=with_prompt)
    assert "".join(pieces) == streamer.text == whole
    assert "" not in pieces
    if "�" not in whole:
        assert not any("�" in piece for piece in pieces)


@given(st.lists(st.sampled_from([0, 1, *range(2 + 0x80, 2 + 0x100), *range(258, 264)]), max_size=20))
def test_broken_bytes_take_nothing_back_that_was_said(new: list[int]) -> None:
    pieces, streamer = streamed(TOKENIZERS["bytes"], [], new)
    assert "".join(pieces) == streamer.text
    tokenizer = TOKENIZERS["bytes"]
    whole = tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert len(streamer.text) == len(whole) or "�" in whole


def test_no_space_is_lost_behind_a_line() -> None:
    """Which transformers' own streamer loses."""
    tokenizer = TOKENIZERS["bytes"]
    ids = tokenizer.convert_tokens_to_ids(["▁a", "\n", "▁word", "b"])
    assert streamed(tokenizer, [], ids)[0] == ["a", "\n", " word", "b"]


def test_a_token_is_said_when_it_comes() -> None:
    said: list[str] = []
    streamer = Streamer(TOKENIZERS["bytes"], said.append)
    streamer.put(torch.tensor([[5, 6]]))
    for token, wanted in zip(
        characters(TOKENIZERS["bytes"], "a€b"), ["a", "a", "a", "a€", "a€b"], strict=True
    ):
        streamer.put(torch.tensor([token]))
        assert "".join(said) == wanted


def test_tokens_are_counted_where_they_were_computed() -> None:
    _, streamer = streamed(TOKENIZERS["bytes"], [70] * 9, [71] * 5, known=6)
    speed = streamer.speed
    assert (speed.prompt_tokens, speed.new_tokens, speed.steps) == (3, 5, 4)
    assert speed.prompt_seconds > 0
    assert speed.new_seconds > 0
    _, alone = streamed(TOKENIZERS["bytes"], [70], [])
    assert (alone.speed.new_tokens, alone.speed.steps, alone.speed.new_seconds) == (0, 0, 0.0)


@pytest.mark.parametrize("raw", [True, False])
def test_generate_says_what_it_returns(raw: bool, llama: Path) -> None:
    pieces: list[str] = []
    speeds: list[Any] = []
    text = roundel.generate(
        llama, "The statement", max_new_tokens=12, raw=raw, on_text=pieces.append, on_end=speeds.append
    )
    assert "".join(pieces) == text
    assert text.startswith("The statement")
    assert len(pieces) > 4
    (speed,) = speeds
    assert speed.new_tokens <= 12
    assert speed.prompt_tokens == len(AutoTokenizer.from_pretrained(llama)("The statement")["input_ids"])
