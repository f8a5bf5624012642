"""What is wrong with a recipe, in words."""

import reprlib
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError


def _short(value: Any) -> str:
    """A value in a message: nested aliases of YAML, written out, can be larger than the memory."""
    short = reprlib.Repr()
    short.maxlevel, short.maxdict, short.maxlist = 2, 4, 4
    short.maxstring = short.maxother = 80
    return short.repr(value)


def explain(error: ValidationError, known: Iterable[str]) -> str:
    """One line for all problems; `known`: the keys that there are."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key {key}; known keys: {', '.join(sorted(known))}")
        elif key:
            lines.append(f"{key}={_short(problem['input'])}: {message[0].lower()}{message[1:]}")
        else:
            lines.append(message)
    return "; ".join(lines)
