"""Nothing follows a chat's own end of turn; texts, and chats whose template writes none, end with end-of-text."""

from typing import Any

import pytest

from roundel.calibration.chats import Renderer
from roundel.calibration.forms import Chat
from roundel.calibration.options import CalibrationOptions
from roundel.calibration.tokens import pack_documents
from zoo.prefixes import tokenizer_with

CHAT = [
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "It is this, of course."},
]
EACH = "{% for m in messages %}"
# Template, and whether it closes a chat itself.
TEMPLATES = {
    "ChatML": (EACH + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}", True),
    "Gemma": (EACH + "<start_of_turn>{{ m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}", True),
    "in plain letters": (EACH + "{{ m.role }}: {{ m.content }} [end]\n{% endfor %}", True),
    "with the end-of-text token": (EACH + "{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}", True),
    "without an end": (EACH + "{{ m.role }}: {{ m.content }}\n{% endfor %}", False),
}


def tokens_of(documents: list[Any], template: str | None, **values: Any) -> str:
    tokenizer = tokenizer_with("$A")
    tokenizer.chat_template = template
    options = CalibrationOptions(**{"nsamples": 1, "seqlen": 200, "shuffle": False, **values})
    return str(tokenizer.decode(pack_documents(documents, tokenizer, options).flatten()))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_ends_as_its_template_ends_it(name: str) -> None:
    template, closes = TEMPLATES[name]
    tokenizer = tokenizer_with("$A")
    tokenizer.chat_template = template
    text = Renderer(tokenizer, None).text(Chat(CHAT))
    end = "" if closes else "<|end|>"
    assert tokens_of([Chat(CHAT)] * 20, template).startswith((text + end) * 3)
    # A text through the template is a chat of one turn.
    said = Renderer(tokenizer, True).text("some words")
    assert tokens_of(["some words"] * 30, template, chat_template=True).startswith((said + end) * 3)


@pytest.mark.parametrize("template", [None, TEMPLATES["ChatML"][0]])
def test_other_documents_end_with_end_of_text(template: str | None) -> None:
    assert tokens_of(["some words"] * 60, template).startswith("some words<|end|>" * 3)
    joined = "\n\n".join(str(turn["content"]) for turn in CHAT) + "<|end|>"
    assert tokens_of([Chat(CHAT)] * 20, template, chat_template=False).startswith(joined * 3)


def test_an_end_behind_words_that_are_in_it() -> None:
    template = TEMPLATES["ChatML"][0]
    for word in ("end", "im", ">", "|", "", "  "):
        chat = Chat([CHAT[0], {"role": "assistant", "content": word}])
        tokenizer = tokenizer_with("$A")
        tokenizer.add_tokens(["<|im_end|>"])
        tokenizer.chat_template = template
        renderer = Renderer(tokenizer, None)
        assert renderer.closes(chat, renderer.text(chat))


def test_a_call_of_a_tool_ends_the_turn_too() -> None:
    template = (
        EACH + "{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}[call {{ c }}]{% endfor %}"
        "<|im_end|>\n{% endfor %}"
    )
    chat = Chat([CHAT[0], {"role": "assistant", "content": "", "tool_calls": ["f"]}])
    assert "<|im_end|>\n<|end|>" not in tokens_of([chat] * 30, template)
