"""Keyword arguments that several functions share: declared once, made into one object, spelled out in signatures."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from typing import ParamSpec, TypedDict, TypeVar, get_type_hints

from roundel.system.progress import Progress

# Metadata of a field that is no argument of a public function.
INTERNAL = {"internal": True}

P = ParamSpec("P")
R = TypeVar("R")


class ModelArguments(TypedDict, total=False):
    """What `ModelOptions` are made of, for type checkers."""

    blocks: str | None
    revision: str | None
    trust_remote_code: bool
    allow_pickle: bool
    allow_quantized: bool
    base: str | None
    progress: Progress | None


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How a model that is to be quantized is found and opened.

    Attributes:
        blocks: pattern of the decoder blocks' full names, or of their list's, where they are not found by themselves.
        revision: branch, tag or commit of a hub id, which may also be `id@revision`; None: its main branch.
        trust_remote_code: run modeling code that comes with the model.
        allow_pickle: read pickled checkpoints (with weights_only).
        allow_quantized: take what Roundel wrote for an original, too.
        base: where the model is a PEFT adapter: its base model, instead of the one that it names.
        progress: gets every message and step; None is silent.
    """

    blocks: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    allow_quantized: bool = False
    base: str | None = None
    progress: Progress | None = None

    @property
    def listener(self) -> Progress:
        """Who gets messages and steps."""
        return self.progress or Progress()


def spelled_out(options: type) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function's `**arguments`, one by one, in its signature and in the `Args` of its documentation.

    Args:
        options: a dataclass that is made of them, whose documentation says what they are.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        signature = signature.replace(parameters=own + _parameters(options))

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{function.__name__}() {error}") from None
            return function(*args, **kwargs)

        call.__signature__ = signature  # type: ignore[attr-defined]
        if function.__doc__ and options.__doc__:  # which python -OO leaves out
            call.__doc__ = _with_arguments(function.__doc__, options.__doc__)
        return call

    return decorate


def _parameters(options: type) -> list[inspect.Parameter]:
    of_class, own = inspect.signature(options).parameters, {entry.name: entry for entry in fields(options)}
    types = get_type_hints(options)
    return [
        parameter.replace(annotation=types[name])
        for name, parameter in of_class.items()
        if "internal" not in own[name].metadata
    ]


def _with_arguments(text: str, of_options: str) -> str:
    """A docstring whose `Args` go on with the attributes of another one."""
    entries = of_options.partition("Attributes:\n")[2].rstrip()
    head, args, rest = text.partition("Args:\n")
    own, gap, behind = rest.partition("\n\n")
    return f"{head}{args}{own.rstrip()}\n{entries}{gap}{behind}"
