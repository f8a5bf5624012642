"""Chats as the model sees them in service: through the chat template of its tokenizer.

Templates differ in what they accept, and some leave out in silence what they do not know. So a chat is rendered in the
form in which it came, and everything that was said must be found in the result. Where the template refuses, or leaves
something out, the chat is adapted to the strictest kind of template (Gemma's, Mistral's first): system texts go in
front of the user's next words, what a tool answers is the user's, neighbours of one role are joined, and answers before
the first question are left out. A message says how many chats that concerns.

A template ends a chat with its own end of turn, and nothing follows that in service: no end-of-text token is put behind
it. A template that writes today's date would give other tokens tomorrow, and an interrupted run could not go on; it is
told one fixed day. Without a template, a chat is its turns' texts with blank lines between.
"""

import reprlib
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from roundel.calibration.forms import Chat
from roundel.errors import CalibrationError

# Of a template's `strftime_now`, for every day the same: templates can be given no functions, but macros.
_DAY = {
    "d": "01",
    "m": "01",
    "Y": "2025",
    "y": "25",
    "b": "Jan",
    "B": "January",
    "A": "Wednesday",
    "a": "Wed",
    "H": "00",
}
_DAY |= {"H": "00", "M": "00", "S": "00"}
_CLOCK = (
    "{%- macro strftime_now(format) -%}{{- format"
    + "".join(f" | replace('%{letter}', '{value}')" for letter, value in _DAY.items())
    + " -}}{%- endmacro -%}"
)


class Renderer:
    """Renders chats for one tokenizer, and keeps count of what was done.

    Args:
        tokenizer: of the model.
        use: every text and chat goes through the template (true) or none (false); None: chats do, where there is one.
    """

    def __init__(self, tokenizer: Any, use: bool | None) -> None:
        self._tokenizer, self._use = tokenizer, use
        self._has = bool(getattr(tokenizer, "chat_template", None))
        self.rendered = self.joined = self.adapted = self.left_out = 0

    @property
    def summary(self) -> str:
        """What became of the chats; nothing where there were none."""
        parts = []
        if self.rendered:
            parts.append("through the model's chat template")
        if self.joined:
            why = "as chat_template=false says" if self._has else "since the model has no chat template"
            parts.append(f"their turns joined as plain text, {why}")
        if self.adapted:
            parts.append(f"{self.adapted} of {self.rendered} chats adapted to what the template accepts")
        if self.left_out:
            parts.append(f"{self.left_out} without a user's turn left out")
        return "; ".join(parts)

    def text(self, document: str | Chat) -> str:
        """A text or chat as one text.

        Raises:
            CalibrationError: the template is asked for and absent, or does not take the chat.
        """
        if isinstance(document, str):
            if not self._use:
                return document
            document = Chat([{"role": "user", "content": document}])
        if self._use and not self._has:
            raise CalibrationError(
                "a chat template is expected and the tokenizer has none: set chat_template=false and give plain text"
            )
        if self._use is False or not self._has:
            self.joined += 1
            return document.joint.join(document.texts)
        return self._through_template(document)

    def closes(self, document: str | Chat, text: str) -> bool:
        """Whether a text ends as the model's own texts do, so that no end-of-text token belongs behind it.

        Args:
            document: a text or chat.
            text: that was made of it.
        """
        if not isinstance(document, Chat) and not self._use:
            return False
        text = text.rstrip()
        if text.endswith(str(self._tokenizer.eos_token)):
            return True
        if self._use is False or not self._has:
            return False
        # An end of turn is what the template writes behind the last words; where there are none, a token of its own.
        said = [document] if isinstance(document, str) else document.texts
        last = said[-1].rpartition("</think>")[2].strip() if said else ""
        behind = text.rpartition(last)[2] if last and last in text else ""
        return bool(behind.strip()) or text.endswith(self._tokens)

    @cached_property
    def _tokens(self) -> tuple[str, ...]:
        return tuple(filter(str.strip, self._tokenizer.get_added_vocab()))

    def _through_template(self, chat: Chat) -> str:
        text, problem = self._tried(chat, chat.messages)
        if text is not None:
            self.rendered += 1
            return text
        messages = adapted(chat.messages)
        if not messages:
            self.left_out += 1
            return ""
        text, _ = self._tried(chat, messages)
        if text is None:
            raise CalibrationError(
                f"the messages {reprlib.repr(chat.messages)} do not go into the tokenizer's chat template ({problem}): "
                "roles and contents that it knows are expected, or set chat_template=false for the turns as plain text"
            )
        self.rendered += 1
        self.adapted += 1
        return text

    def _tried(self, chat: Chat, messages: list[dict[str, Any]]) -> tuple[str | None, str]:
        """Messages through the template, in whichever spelling of their contents it reads; else what is wrong."""
        problem = ""
        template: str | None = None  # the tokenizer's own
        if "strftime_now" in str(self._tokenizer.chat_template):
            template = _CLOCK + self._tokenizer.get_chat_template(None, chat.tools)
        for spelled in (messages, [_in_parts(message) for message in messages]):
            try:
                text = str(
                    self._tokenizer.apply_chat_template(
                        spelled, tools=chat.tools, tokenize=False, chat_template=template
                    )
                )
            except (TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:
                problem = problem or str(error) or type(error).__name__
                continue
            lost = next((m for m in messages if not _is_there(m, text)), None)
            if lost is None:
                return text, ""
            problem = problem or f"it leaves out what {lost['role']} says"
        return None, problem


def adapted(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages as the strictest templates want them: user and assistant in turns, the user first."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = "assistant" if message["role"] == "assistant" else "user"
        if not message["content"] or (role == "assistant" and not turns):
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += f"\n\n{message['content']}"
        else:
            turns.append({"role": role, "content": message["content"]})
    asked = any(message["role"] == "user" and message["content"] for message in messages)
    return turns if asked else []


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _is_there(message: dict[str, Any], text: str) -> bool:
    """Whether a message's words are in a text; of an assistant's thoughts templates keep the last alone."""
    said = message["content"]
    if message["role"] == "assistant":
        said = said.rpartition("</think>")[2]
    return said.strip() in text
