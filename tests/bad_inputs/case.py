"""A bad input, and those of an area: a section of docs/errors.md."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bad_inputs.box import Box

Arrange = Callable[[Box], list[Any]]


@dataclass(frozen=True)
class Case:
    """A bad input.

    Attributes:
        section: heading in the docs.
        summary: the input, for the docs.
        code: exit code.
        message: a part of the message.
        arrange: makes the input; returns the command's arguments. `quantize` is given `-o out` if it has no output.
    """

    section: str
    summary: str
    code: int
    message: str
    arrange: Arrange

    def __str__(self) -> str:
        return f"{self.section}: {self.summary}".replace("`", "")


@dataclass(frozen=True)
class Area:
    """The bad inputs of one heading."""

    section: str
    cases: tuple[Case, ...]


def area(section: str, rows: Sequence[tuple[Any, ...]], code: int | None = None) -> Area:
    """Of rows with a summary, exit code, message and what makes the input; an exit code that all have is given once."""
    shared = () if code is None else (code,)
    return Area(section, tuple(Case(section, summary, *shared, *row) for summary, *row in rows))
