"""Chats in every spelling go through the model's template, and lose nothing in it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from calibration.gathered import CHATS, TEMPLATE, TURNS, Told, gather, options
from roundel.calibration.forms import Chat
from roundel.calibration.rows import as_document
from roundel.calibration.tokens import pack_documents
from roundel.errors import CalibrationError
from zoo.prefixes import tokenizer_with
from zoo.texts import lines, parquet

# Gemma's: no system, turns alternate, the user first.
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate') }}{% endif %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
)


SPELLED: dict[str, list[Any]] = {
    "messages": [{"messages": chat} for chat in TURNS],
    "ShareGPT": [
        {"id": "x", "conversations": [{"from": {"user": "human", "assistant": "gpt"}[r], "value": s} for r, s in chat]}
        for chat in CHATS
    ],
    "typed parts": [
        {"messages": [{"role": r, "content": [{"type": "text", "text": s}]} for r, s in chat]} for chat in CHATS
    ],
    "Alpaca": [{"instruction": a[1], "input": "", "output": b[1]} for a, b in CHATS],
    "completions": [{"prompt": a[1], "completion": b[1]} for a, b in CHATS],
    "completions of messages": [{"prompt": chat[:1], "completion": chat[1:]} for chat in TURNS],
    "preferences": [{"prompt": a[1], "chosen": b[1], "rejected": "No."} for a, b in CHATS],
    "preferences of chats": [{"chosen": chat, "rejected": chat[:1]} for chat in TURNS],
    "preferences, prompt repeated": [{"prompt": c[0]["content"], "chosen": c, "rejected": c[:1]} for c in TURNS],
    "bare chats": TURNS,
}  # fmt: skip


def rendered(template_free: bool = False) -> torch.Tensor:
    """By hand: what the template makes of the chats, packed as any text."""
    joint = "\n\n"
    if template_free:
        texts = [joint.join(said for _, said in chat) for chat in CHATS]
    else:
        texts = ["".join(f"<{role}>{said}\n" for role, said in chat) for chat in CHATS]
    return pack_documents(texts, tokenizer_with("<s> $A"), options())


IN_FILES = [(name, suffix) for name in SPELLED for suffix in (".jsonl", ".json", ".parquet")]
IN_FILES.remove(("bare chats", ".parquet"))  # whose rows have columns


@pytest.mark.parametrize(("name", "suffix"), IN_FILES)
def test_chats_in_every_spelling_go_through_the_template(name: str, suffix: str, tmp_path: Path) -> None:
    rows = SPELLED[name]
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        parquet(rows, path)
    else:
        path.write_text(lines(rows) if suffix == ".jsonl" else json.dumps(rows), encoding="utf-8")
    told = Told()
    found = gather(str(path), TEMPLATE, told)
    assert torch.equal(found.tokens, rendered())
    assert told.said == [f"Calibration: {found.source}"]
    assert f"a{suffix}: " in found.source
    assert found.source.endswith(", through the model's chat template, 6 samples")
    assert ("(ShareGPT)" in found.source) == (name == "ShareGPT")


def test_without_a_template_turns_are_joined_and_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(lines(SPELLED["ShareGPT"]), encoding="utf-8")
    found = gather(str(path))
    assert torch.equal(found.tokens, rendered(template_free=True))
    assert "turns joined as plain text, since the model has no chat template" in found.source
    refused = gather(str(path), TEMPLATE, chat_template=False)
    assert torch.equal(refused.tokens, found.tokens)
    assert "as chat_template=false says" in refused.source


def test_a_prompt_runs_on_into_its_completion_without_a_template() -> None:
    chat = as_document({"prompt": "The sky", "completion": " is blue."}, "row")
    assert isinstance(chat, Chat)
    assert chat.joint.join(chat.texts) == "The sky is blue."


def text_of(messages: list[dict[str, Any]], template: str) -> tuple[str, str]:
    from roundel.calibration.chats import Renderer

    tokenizer = tokenizer_with("<s> $A")
    tokenizer.chat_template = template
    renderer = Renderer(tokenizer, None)
    return renderer.text(Chat(messages)), renderer.summary


def test_a_template_that_refuses_system_texts_and_other_orders() -> None:
    messages = [
        {"role": "assistant", "content": "Hello."},
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "Three."},
        {"role": "tool", "content": "4"},
    ]
    text, words = text_of(messages, STRICT)
    assert text == "<user>Be brief.\n\nOne?\n\nTwo?\n<assistant>Three.\n<user>4\n"
    assert "1 of 1 chats adapted" in words
    text, words = text_of([{"role": "assistant", "content": "Hello."}], STRICT)
    assert (text, words) == ("", "1 without a user's turn left out")


def test_a_template_that_leaves_something_out_is_found_out() -> None:
    silent = "{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}\n{% endif %}{% endfor %}"
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    text, words = text_of(chat, silent)
    assert text == "<user>Be brief.\n\nWhy?\n"
    assert "adapted" in words
    in_parts = "{% for m in messages %}<{{ m.role }}>{{ m.content[0].text }}\n{% endfor %}"
    assert text_of(chat, in_parts)[0] == "<system>Be brief.\n<user>Why?\n"
    with pytest.raises(CalibrationError, match=r"leaves out what system says.*chat_template=false"):
        text_of(chat, "nothing")


def test_a_template_that_writes_the_day_writes_the_same_every_day() -> None:
    text, _ = text_of(
        [{"role": "user", "content": "a"}], "{{ strftime_now('%Y-%m-%d') }} {{ messages[0].content }}"
    )
    assert text == "2025-01-01 a"
    nested = "{% macro head() %}{{ strftime_now('%d %b %Y') }}: {% endmacro %}{{ head() }}{{ messages[0].content }}"
    assert text_of([{"role": "user", "content": "a"}], nested)[0] == "01 Jan 2025: a"


def test_thoughts_that_a_template_drops_are_no_loss() -> None:
    template = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}\n{% endfor %}"
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>hm</think>\nb"}]
    assert text_of(chat, template)[1] == "through the model's chat template"


def test_what_else_belongs_to_a_row() -> None:
    alpaca = {
        "instruction": "Add.",
        "input": "1 and 2",
        "output": "3",
        "system": "Be exact.",
        "history": [["a", "b"]],
    }
    chat = as_document(alpaca, "row")
    assert isinstance(chat, Chat)
    assert [(m["role"], m["content"]) for m in chat.messages] == [
        ("system", "Be exact."), ("user", "a"), ("assistant", "b"), ("user", "Add.\n\n1 and 2"), ("assistant", "3"),
    ]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "f"}}]
    for given_tools in (tools, json.dumps(tools)):
        chat = as_document({"messages": TURNS[0], "tools": given_tools}, "row")
        assert chat == Chat(TURNS[0], tools)
    assert as_document({"chosen": "Human: hi", "rejected": "no"}, "row") == "Human: hi"
