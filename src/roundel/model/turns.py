"""One thread at a time opens a model: transformers is not made for two.

While a class is built, transformers changes what all threads share: it takes `tie_weights` away from every model,
replaces functions of `torch.nn.init`, sets torch's default type. A second thread that opens a model meanwhile finds
weights untied and heads missing, and what each then puts back may be what the other had put there, permanently. So all
opening is done under one lock. The rejected alternative, thread-local versions of each of these changes, has to be
found anew with every release of transformers.

What is needed without weights is built here too, by `empty_weights`: accelerate's `init_empty_weights` makes the
parameters of every module on the meta device that any thread makes meanwhile, those of a block that is being tuned
included. Here it is those of the thread that asked.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

P = ParamSpec("P")
R = TypeVar("R")

_lock = threading.RLock()


def _fresh() -> None:
    """A fork has the lock as it was, and no thread that would ever release it."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_fresh)


@contextmanager
def turn() -> Iterator[None]:
    """This thread alone uses what transformers changes for all; inside of itself it does nothing."""
    with _lock:
        yield


def in_turn(function: Callable[P, R]) -> Callable[P, R]:
    """A function that opens a model, by one thread at a time."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with turn():
            return function(*args, **kwargs)

    return call


@contextmanager
def empty_weights() -> Iterator[None]:
    """Modules that this thread makes have parameters without memory; their buffers are computed."""
    register, mine = nn.Module.register_parameter, threading.get_ident()

    def register_empty(module: nn.Module, name: str, parameter: Any) -> None:
        register(module, name, parameter)
        if parameter is not None and threading.get_ident() == mine:
            made: Any = module._parameters[name]
            options = {**made.__dict__, "requires_grad": parameter.requires_grad}
            module._parameters[name] = type(made)(made.to(torch.device("meta")), **options)

    with turn():
        nn.Module.register_parameter = register_empty  # type: ignore
        try:
            yield
        finally:
            nn.Module.register_parameter = register  # type: ignore
