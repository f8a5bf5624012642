"""Functions of the api to which a caller lends models: checked before any work, and as they were afterwards."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch import nn

from roundel.model.borrowed import borrowed, taken
from roundel.model.in_memory import checked

P = ParamSpec("P")
R = TypeVar("R")


def lent(*, original: bool = False, changed: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function that gets models in memory as arguments, or in lists of them.

    Args:
        original: they are to be quantized, or looked at for that; else run.
        changed: they are changed in place where the function comes to its end.

    Raises:
        ModelError: of the function, for a model that is no use (model/in_memory.py).
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with ExitStack() as lent:

                def lend(given: Any) -> Any:
                    if isinstance(given, list | tuple) and any(isinstance(item, nn.Module) for item in given):
                        return [lend(item) for item in given]
                    if not isinstance(given, nn.Module):
                        return given
                    model = checked(given, original=original)
                    lent.enter_context(taken(model) if changed else borrowed(model))
                    return model

                return function(*map(lend, args), **{key: lend(value) for key, value in kwargs.items()})

        return call

    return decorate
