"""A chat says, turn by turn, what transformers' own `generate` says to the whole conversation at once."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import roundel
from roundel.errors import ModelError
from roundel.workflows import chat
from zoo import zoo_model

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|> {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PARTS = TEMPLATE.replace("m['content']", "m['content'][0]['text']")
# Shows of earlier answers no more than their place, as templates of thinking models do with thoughts.
FORGETFUL = TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'] if m['role'] == 'user' else '...' }}")
TURNS = ["The statement is", "A class", "What is an object?"]


def chatting(name: str, folder: Path, template: str) -> Path:
    shutil.copytree(zoo_model(name), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def answered_alone(folder: Path, turns: list[str], new: int, parts: bool) -> list[dict[str, str]]:
    """Every answer from the whole conversation, by transformers alone."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    said: list[dict[str, str]] = []
    for turn in turns:
        said.append({"role": "user", "content": turn})
        spelled = [{**m, "content": [{"type": "text", "text": m["content"]}]} if parts else m for m in said]
        text = tokenizer.apply_chat_template(spelled, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            found = model.generate(ids, do_sample=False, max_new_tokens=new)
        answer = tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)
        said.append({"role": "assistant", "content": answer})
    return said


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("llama", TEMPLATE),
        ("llama", PARTS),
        ("llama", FORGETFUL),
        ("mistral", TEMPLATE),
        ("mamba2", TEMPLATE),
    ],
    ids=["plain", "parts", "forgetful", "sliding window", "a state"],
)
def test_answers_are_those_to_the_whole_conversation(name: str, template: str, tmp_path: Path) -> None:
    folder = chatting(name, tmp_path / "model", template)
    wanted = answered_alone(folder, TURNS, 10, template == PARTS)
    pieces: list[str] = []
    found = roundel.chat(folder, TURNS, max_new_tokens=10, on_text=pieces.append)
    assert found == wanted
    assert "".join(pieces) == "".join(turn["content"] for turn in wanted if turn["role"] == "assistant")


def test_what_is_known_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = chatting("llama", tmp_path / "model", TEMPLATE)
    speeds: list[Any] = []
    with_memory = roundel.chat(folder, TURNS, max_new_tokens=10, on_end=speeds.append)
    monkeypatch.setattr(chat._Memory, "of", lambda *_: (None, 0))
    without = roundel.chat(folder, TURNS, max_new_tokens=10, on_end=speeds.append)
    assert with_memory == without
    kept, read = speeds[:3], speeds[3:]
    assert kept[0].prompt_tokens == read[0].prompt_tokens
    for before, now, whole in zip(read[:-1], kept[1:], read[1:], strict=True):
        # The turns before are known; the answer to the last of them too, as far as its text has the same tokens.
        assert now.prompt_tokens <= whole.prompt_tokens - before.prompt_tokens + 1


def test_what_cannot_go_back_is_read_again(tmp_path: Path) -> None:
    folder = chatting("mamba2", tmp_path / "model", TEMPLATE)
    speeds: list[Any] = []
    said = roundel.chat(folder, TURNS[:2], max_new_tokens=10, on_end=speeds.append)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(said[:3], tokenize=False, add_generation_prompt=True)
    assert speeds[1].prompt_tokens == len(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_the_next_turn_is_asked_for_when_the_last_is_answered(tmp_path: Path) -> None:
    folder = chatting("llama", tmp_path / "model", TEMPLATE)
    order: list[str] = []

    def turns():
        for turn in ("The", " ", "A"):
            order.append(f"asked {turn.strip()}")
            yield turn

    said = roundel.chat(folder, turns(), max_new_tokens=3, on_end=lambda _: order.append("answered"))
    assert order == ["asked The", "answered", "asked ", "asked A", "answered"]
    assert [turn["content"] for turn in said if turn["role"] == "user"] == ["The", "A"]


def test_an_answer_ends_with_the_positions_and_then_the_chat(tmp_path: Path) -> None:
    folder = chatting("llama", tmp_path / "model", TEMPLATE)
    long = "object " * 150
    speeds: list[Any] = []
    with pytest.raises(ModelError, match=r"reaches 512.*a new one should begin"):
        roundel.chat(folder, [long, long, long, long], max_new_tokens=400, on_end=speeds.append)
    assert len(speeds) >= 1


def test_without_a_template_there_is_no_chat(llama: Path) -> None:
    with pytest.raises(ModelError, match="no chat template"):
        roundel.chat(llama, ["The"])


def test_a_model_in_memory_is_as_it_was(tmp_path: Path) -> None:
    folder = chatting("llama", tmp_path / "model", TEMPLATE)
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    said = roundel.chat(model, TURNS[:1], max_new_tokens=4, tokenizer=AutoTokenizer.from_pretrained(folder))
    assert said == roundel.chat(folder, TURNS[:1], max_new_tokens=4)
    assert model.training
