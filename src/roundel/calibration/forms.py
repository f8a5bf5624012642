"""What the rows of people's data mean: texts, token ids, chats, instructions, prompts, preferences.

A form is a set of columns that together make a document. The first row of a file decides which form its rows have;
where its columns fit no form, or several, that is an error that lists them, since a column taken by a wrong guess would
still be text, and nobody would see it. All rows of a file have one form. A field that the user names is taken alone;
several (`instruction+output`) are recognized among themselves.

Of a preference pair the chosen answer is a document: it is what the model should write, and the rejected one is not.
"""

import json
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from roundel.errors import CalibrationError

# No token id: it would not fit a tensor.
_TOO_LARGE = 2**63
TEXT_COLUMNS = ("text", "content", "document", "sentence")
CHAT_COLUMNS = ("messages", "conversations", "conversation")
_SYSTEM = ("system", "system_prompt")
_PROMPTS = ("prompt", "question", "instruction")
# As data sets call them, and as chat templates do.
_ROLES = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool", "ipython": "tool",
}  # fmt: skip


@dataclass(frozen=True)
class Chat:
    """Turns of a conversation.

    Attributes:
        messages: with `role` and `content`, and whatever else the chat template may read.
        tools: functions that the assistant may call, for the template.
        joint: between the turns, where there is no template.
    """

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    joint: str = "\n\n"

    @property
    def texts(self) -> list[str]:
        """What the turns say."""
        return [message["content"] for message in self.messages if message["content"]]


Document = str | list[int] | Chat


@dataclass(frozen=True)
class Form:
    """A way to read a row.

    Attributes:
        summary: what it makes of rows.
        columns: that a row must have.
        read: a row, and the words that name it in errors, to a document.
        further: columns that are read too where they are there.
    """

    summary: str
    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any], str], Document]
    further: tuple[str, ...] = ()

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has all that it must have."""
        return all(row.get(column) is not None for column in self.columns)

    def of(self, row: Mapping[str, Any]) -> str:
        """Words for what is made of rows like this one."""
        used = used_columns(self, row)
        turns = row.get(used[0])
        tag = ""
        if isinstance(turns, list) and turns and isinstance(turns[0], dict) and "from" in turns[0]:
            tag = " (ShareGPT)"
        return f"{self.summary} {' + '.join(used)}{tag}"


def are_ids(row: Any) -> bool:
    """Whether a value is a list of token ids."""
    return isinstance(row, list) and all(type(token) is int and abs(token) < _TOO_LARGE for token in row)


def forms_of(row: Mapping[str, Any]) -> list[Form]:
    """Forms of which a row has all the columns."""
    return [form for form in FORMS if form.fits(row)]


def used_columns(form: Form, row: Mapping[str, Any]) -> list[str]:
    """The columns of a row that a form takes."""
    return [*form.columns, *(column for column in form.further if row.get(column) is not None)]


def name_keys(row: Mapping[str, Any]) -> str:
    """Names of columns for a message; of many the first."""
    shown = [str(name)[:40] for name in row]
    return ", ".join(shown[:20]) + (", ..." if len(shown) > 20 else "")


def name_columns(row: Mapping[str, Any]) -> str:
    """The same in words."""
    return f"the columns {name_keys(row)}" if row else "no columns"


def shorten(row: Any) -> str:
    """A value in a message."""
    return reprlib.repr(row)[:60]


def value_of(row: Mapping[str, Any], column: str, where: str) -> Document:
    """A column that the user named: whatever document it is."""
    value = row[column]
    if isinstance(value, str) and column in CHAT_COLUMNS:
        return Chat(messages_of(value, where))
    if isinstance(value, str) or are_ids(value):
        return value
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        return Chat(messages_of(value, where))
    raise CalibrationError(
        f"{column} of {where} is {shorten(value)}; a text, token ids or a list of messages is expected: name another "
        "field"
    )


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CalibrationError(
            f"{column} of {where} is {shorten(value)}; a text is expected: name the field that has it, FILE:FIELD"
        )
    return value


def messages_of(turns: Any, where: str) -> list[dict[str, Any]]:
    """Turns in any spelling as messages with `role` and `content`."""
    if isinstance(turns, str):  # as tables hold them
        try:
            turns = json.loads(turns)
        except ValueError:
            turns = [turns]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise CalibrationError(
            f"{where} has {shorten(turns)} for messages; a list of objects with role and content, or from and value, "
            "is expected"
        )
    return [_message(turn, f"message {number} of {where}") for number, turn in enumerate(turns)]


def _message(turn: Mapping[str, Any], where: str) -> dict[str, Any]:
    # Tables fill up what a row lacks.
    kept = {key: value for key, value in turn.items() if value is not None}
    role = kept.pop("role", None) or kept.pop("from", None)
    said = next((key for key in ("content", "value", "text") if key in kept), None)
    content = kept.pop(said) if said else ""
    calls = any(key in kept for key in ("tool_calls", "function_call"))
    if not isinstance(role, str) or (said is None and not calls):
        raise CalibrationError(
            f"{where} has the keys {name_keys(turn)}; role and content, or from and value, are expected"
        )
    if "from" in turn and role.lower() not in _ROLES:
        raise CalibrationError(f"{where} is from {role!r}; one of {', '.join(_ROLES)} is expected")
    return {**kept, "role": _ROLES.get(role.lower(), role), "content": _content(content, where)}


def _content(content: Any, where: str) -> str:
    """A message's text, of one piece or of typed parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else None
            raise CalibrationError(
                f"{where} holds {f'a part of the type {kind}' if kind else shorten(part)}; text is expected: "
                "leave out what is none"
            )
        texts.append(text)
    return "\n".join(texts)


def _system(row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    texts = [_text(row, column, where) for column in _SYSTEM]
    return [{"role": "system", "content": text} for text in texts if text.strip()]


def _chat(column: str) -> Form:
    def read(row: Mapping[str, Any], where: str) -> Chat:
        tools = row.get("tools")
        if isinstance(tools, str):
            try:
                tools = json.loads(tools) if tools.strip() else None
            except ValueError as error:
                raise CalibrationError(
                    f"tools of {where} is no JSON ({error}): a list is expected, or name the field {column} alone"
                ) from error
        return Chat([*_system(row, where), *messages_of(row[column], where)], tools or None)

    return Form("chats of the column", (column,), read, (*_SYSTEM, "tools"))


def _texts(column: str) -> Form:
    return Form("texts of the column", (column,), lambda row, where: _text(row, column, where))


def _pair(words: str, prompt: str, answer: str, more: str = "", joint: str = "\n\n") -> Form:
    """A question and its answer: a chat of two turns."""

    def read(row: Mapping[str, Any], where: str) -> Chat:
        before: list[dict[str, Any]] = []
        for turn in row.get("history") or []:
            if not isinstance(turn, Sequence) or len(turn) != 2 or not all(isinstance(t, str) for t in turn):
                raise CalibrationError(
                    f"history of {where} is {shorten(turn)}; pairs of texts, question and answer, are expected"
                )
            before += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
        if isinstance(row[prompt], list) or isinstance(row[answer], list):
            turns = [*_turns(row[prompt], "user", where), *_turns(row[answer], "assistant", where)]
            return Chat([*_system(row, where), *before, *turns])
        asked = _text(row, prompt, where)
        added = _text(row, more, where) if more else ""
        if added.strip():
            asked = f"{asked}\n\n{added}"
        turns = [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": _text(row, answer, where)},
        ]
        return Chat([*_system(row, where), *before, *turns], joint=joint)

    return Form(words, (prompt, answer), read, tuple(filter(None, (more, *_SYSTEM, "history"))))


def _turns(value: Any, role: str, where: str) -> list[dict[str, Any]]:
    """A text as a message, or the messages that are there already."""
    return [{"role": role, "content": value}] if isinstance(value, str) else messages_of(value, where)


def _preference() -> Form:
    def read(row: Mapping[str, Any], where: str) -> Document:
        prompts = [column for column in _PROMPTS if row.get(column) is not None]
        if len(prompts) > 1:
            raise CalibrationError(
                f"{where} has {' and '.join(prompts)} beside chosen and rejected: name the one that is the question, "
                f"FILE:{prompts[0]}+chosen+rejected"
            )
        answer = row["chosen"]
        if not isinstance(answer, str | list):
            return Chat(_turns(answer, "assistant", where))  # which raises
        told = _turns(answer, "assistant", where)
        whole = bool(told) and told[0]["role"] != "assistant"
        if isinstance(answer, str) and not prompts:
            return answer
        asked = [] if whole or not prompts else _turns(row[prompts[0]], "user", where)
        return Chat([*([] if whole else _system(row, where)), *asked, *told])

    return Form("chosen answers of the columns", ("chosen", "rejected"), read, (*_PROMPTS, *_SYSTEM))


def _ids(row: Mapping[str, Any], where: str) -> Document:
    if not are_ids(row["input_ids"]):
        raise CalibrationError(
            f"input_ids of {where} is {shorten(row['input_ids'])}; a list of token ids is expected"
        )
    return list(row["input_ids"])


FORMS = (
    Form("token ids of the column", ("input_ids",), _ids),
    *(_chat(column) for column in CHAT_COLUMNS),
    _pair("instructions with answers (Alpaca) of the columns", "instruction", "output", "input"),
    _pair("instructions with answers of the columns", "instruction", "response", "context"),
    _pair("prompts with answers of the columns", "prompt", "completion", joint=""),
    _pair("prompts with answers of the columns", "prompt", "response"),
    _preference(),
    *(_texts(column) for column in TEXT_COLUMNS),
)
KNOWN = (
    f"one of the keys input_ids, {', '.join((*CHAT_COLUMNS, *TEXT_COLUMNS))}; or instruction and output, prompt and "
    "completion, chosen and rejected"
)
