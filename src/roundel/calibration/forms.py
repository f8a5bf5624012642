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
        used = _used(self, row)
        turns = row.get(used[0])
        tag = ""
        if isinstance(turns, list) and turns and isinstance(turns[0], dict) and "from" in turns[0]:
            tag = " (ShareGPT)"
        return f"{self.summary} {' + '.join(used)}{tag}"


class Reader:
    """Reads the rows of one file, which all have one form.

    Args:
        place: the file, as the user may name it with a field behind it.
        field: the field that the user named; nothing: the form is recognized.
    """

    def __init__(self, place: str, field: str = "") -> None:
        self.place, self._field = place, field
        self.form: Form | None = None
        self.summary = ""
        self._first = ""

    def document(self, row: Any, where: str) -> Document:
        """A row as a document.

        Args:
            row: of the file.
            where: names it in errors.

        Raises:
            CalibrationError: its form is unknown, doubtful, or another one than that of the rows before.
        """
        if not isinstance(row, Mapping):
            return self._bare(row, where)
        if self._field:
            row = self._restricted(row, where)
        if self.form is None and not _forms_of(row) and any(set(form.columns) <= set(row) for form in FORMS):
            return ""  # without a value; the next row says the form
        if self.form is None:
            self.form, self._first = self._recognize(row, where), where
            self.summary = self.form.of(row)
        if not self.form.fits(row):
            return self._empty(row, where)
        return self.form.read(row, where)

    def _bare(self, row: Any, where: str) -> Document:
        """A row that is no object: a text, token ids, or a chat itself."""
        if self._field:
            raise CalibrationError(
                f"{where} is {_describe(row)}: the field {self._field} belongs to an object; leave the field out"
            )
        document = as_document(row, where)
        words = _bare_text(document)
        if self.form is not None or (self.summary and self.summary != words):
            raise self._mixed(where, words)
        self.summary, self._first = words, self._first or where
        return document

    def _recognize(self, row: Mapping[str, Any], where: str) -> Form:
        if self.summary:
            raise self._mixed(where, f"an object with the columns {_names(row)}")
        if self._field and len(row) == 1:
            return Form("the field", tuple(row), lambda found, place: _value(found, self._field, place))
        found = _forms_of(row)
        if not found:
            raise CalibrationError(
                f"{where} has {_columns(row)}, which make no form that is known: name the column of text, "
                f"{self.place}:COLUMN; or use {KNOWN}"
            )
        if len(found) > 1:
            ways = " or ".join(
                f"{self.place}:{'+'.join(_used(form, row))} ({form.summary.partition(' of ')[0]})"
                for form in found
            )
            raise CalibrationError(
                f"{where} has {_columns(row)}, which could be read in {len(found)} ways: give {ways}"
            )
        return found[0]

    def _restricted(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        names = [self._field] if self._field in row else self._field.split("+")
        missing = [name for name in names if name not in row]
        if missing:
            raise CalibrationError(
                f"{where} has no field {missing[0]}; it has {_columns(row)}: use one of them"
            )
        return {name: row[name] for name in names}

    def _empty(self, row: Mapping[str, Any], where: str) -> Document:
        """A row without a value, which is no document; anything else is of another form."""
        form = self.form
        assert form is not None
        others = _forms_of(row)
        if others or not all(column in row for column in form.columns):
            raise self._mixed(where, others[0].of(row) if others else f"an object with {_columns(row)}")
        return ""

    def _mixed(self, where: str, found: str) -> CalibrationError:
        return CalibrationError(
            f"{where} is {found}, and {self._first} {self.summary}: rows of one form are expected in a file; "
            f"split it, or name the field that all rows have, {self.place}:FIELD"
        )


def as_document(row: Any, where: str) -> Document:
    """A row of any form as a document; `where` names it in errors.

    Raises:
        CalibrationError: its form is unknown or doubtful.
    """
    if isinstance(row, Mapping):
        return Reader("FILE").document(row, where)
    if isinstance(row, str | Chat):
        return row
    if _are_ids(row):
        return list(row)
    if isinstance(row, list) and all(isinstance(message, dict) for message in row):
        return Chat(_messages(row, where))
    raise CalibrationError(
        f"{where} is {_describe(row)}; expected is a string, a list of token ids or messages, or an object with {KNOWN}"
    )


def is_blank(document: Document) -> bool:
    """Whether there is nothing in a document."""
    if isinstance(document, Chat):
        return not any(text.strip() for text in document.texts)
    return not (document.strip() if isinstance(document, str) else document)


def extent(document: Document) -> int:
    """How long a document is, in characters; 0 of token ids, of which everything is kept: their order may count."""
    if isinstance(document, Chat):
        return sum(map(len, document.texts))
    return len(document) if isinstance(document, str) else 0


def _bare_text(document: Document) -> str:
    if isinstance(document, Chat):
        return "chats"
    return "texts" if isinstance(document, str) else "token ids"


def _are_ids(row: Any) -> bool:
    return isinstance(row, list) and all(type(token) is int and abs(token) < _TOO_LARGE for token in row)


def _forms_of(row: Mapping[str, Any]) -> list[Form]:
    """Forms of which a row has all the columns."""
    return [form for form in FORMS if form.fits(row)]


def _used(form: Form, row: Mapping[str, Any]) -> list[str]:
    return [*form.columns, *(column for column in form.further if row.get(column) is not None)]


def _names(row: Mapping[str, Any]) -> str:
    shown = [str(name)[:40] for name in row]
    return ", ".join(shown[:20]) + (", ..." if len(shown) > 20 else "")


def _columns(row: Mapping[str, Any]) -> str:
    return f"the columns {_names(row)}" if row else "no columns"


def _describe(row: Any) -> str:
    return reprlib.repr(row)[:60]


def _value(row: Mapping[str, Any], column: str, where: str) -> Document:
    """A column that the user named: whatever document it is."""
    value = row[column]
    if isinstance(value, str) and column in CHAT_COLUMNS:
        return Chat(_messages(value, where))
    if isinstance(value, str) or _are_ids(value):
        return value
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        return Chat(_messages(value, where))
    raise CalibrationError(
        f"{column} of {where} is {_describe(value)}; a text, token ids or a list of messages is expected: name another "
        "field"
    )


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CalibrationError(
            f"{column} of {where} is {_describe(value)}; a text is expected: name the field that has it, FILE:FIELD"
        )
    return value


def _messages(turns: Any, where: str) -> list[dict[str, Any]]:
    """Turns in any spelling as messages with `role` and `content`."""
    if isinstance(turns, str):  # as tables hold them
        try:
            turns = json.loads(turns)
        except ValueError:
            turns = [turns]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise CalibrationError(
            f"{where} has {_describe(turns)} for messages; a list of objects with role and content, or from and value, "
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
            f"{where} has the keys {_names(turn)}; role and content, or from and value, are expected"
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
                f"{where} holds {f'a part of the type {kind}' if kind else _describe(part)}; text is expected: "
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
        return Chat([*_system(row, where), *_messages(row[column], where)], tools or None)

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
                    f"history of {where} is {_describe(turn)}; pairs of texts, question and answer, are expected"
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
    return [{"role": role, "content": value}] if isinstance(value, str) else _messages(value, where)


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
    if not _are_ids(row["input_ids"]):
        raise CalibrationError(
            f"input_ids of {where} is {_describe(row['input_ids'])}; a list of token ids is expected"
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
