"""Rows of people's data as documents: the first row of a file decides which form (forms.py) all of them have."""

from collections.abc import Mapping
from typing import Any

from roundel.calibration.forms import (
    FORMS,
    KNOWN,
    Chat,
    Document,
    Form,
    are_ids,
    forms_of,
    messages_of,
    name_columns,
    name_keys,
    shorten,
    used_columns,
    value_of,
)
from roundel.errors import CalibrationError


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
        if self.form is None and not forms_of(row) and any(set(form.columns) <= set(row) for form in FORMS):
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
                f"{where} is {shorten(row)}: the field {self._field} belongs to an object; leave the field out"
            )
        document = as_document(row, where)
        words = _bare_text(document)
        if self.form is not None or (self.summary and self.summary != words):
            raise self._mixed(where, words)
        self.summary, self._first = words, self._first or where
        return document

    def _recognize(self, row: Mapping[str, Any], where: str) -> Form:
        if self.summary:
            raise self._mixed(where, f"an object with the columns {name_keys(row)}")
        if self._field and len(row) == 1:
            return Form("the field", tuple(row), lambda found, place: value_of(found, self._field, place))
        found = forms_of(row)
        if not found:
            raise CalibrationError(
                f"{where} has {name_columns(row)}, which make no form that is known: name the column of text, "
                f"{self.place}:COLUMN; or use {KNOWN}"
            )
        if len(found) > 1:
            ways = " or ".join(
                f"{self.place}:{'+'.join(used_columns(form, row))} ({form.summary.partition(' of ')[0]})"
                for form in found
            )
            raise CalibrationError(
                f"{where} has {name_columns(row)}, which could be read in {len(found)} ways: give {ways}"
            )
        return found[0]

    def _restricted(self, row: Mapping[str, Any], where: str) -> dict[str, Any]:
        names = [self._field] if self._field in row else self._field.split("+")
        missing = [name for name in names if name not in row]
        if missing:
            raise CalibrationError(
                f"{where} has no field {missing[0]}; it has {name_columns(row)}: use one of them"
            )
        return {name: row[name] for name in names}

    def _empty(self, row: Mapping[str, Any], where: str) -> Document:
        """A row without a value, which is no document; anything else is of another form."""
        form = self.form
        assert form is not None
        others = forms_of(row)
        if others or not all(column in row for column in form.columns):
            raise self._mixed(where, others[0].of(row) if others else f"an object with {name_columns(row)}")
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
    if are_ids(row):
        return list(row)
    if isinstance(row, list) and all(isinstance(message, dict) for message in row):
        return Chat(messages_of(row, where))
    raise CalibrationError(
        f"{where} is {shorten(row)}; expected is a string, a list of token ids or messages, or an object with {KNOWN}"
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
