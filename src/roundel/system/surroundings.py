"""What surrounds a call: the caller's modes and the voices of other libraries.

The caller may be in a notebook's `torch.no_grad()` or `torch.inference_mode()`, under autocast, in a program with
another default dtype. None of it is meant for the inside of a call, where gradients flow and every type is chosen; so
it is out of the way meanwhile, and the result has the same bytes. The same with bars, logs and warnings of the
libraries below: a caller hears what they give a `Progress` to hear, and errors. What belongs to the whole process
(default dtype, levels of loggers, warnings) is put aside by the first call and back by the last, as several threads
may be in calls at a time.
"""

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from tqdm import tqdm

from roundel.system.forks import forked

P = ParamSpec("P")
R = TypeVar("R")

_LOGGERS = ("transformers", "accelerate", "datasets", "huggingface_hub", "compressed_tensors", "peft")

_lock = threading.Lock()
_calls = 0
_aside = ExitStack()
_inside = threading.local()


def undisturbed(function: Callable[P, R]) -> Callable[P, R]:
    """A function of the api that does the same in every state of its caller, and in silence."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        def undisturbed() -> R:
            with _process_aside(), _thread_aside():
                return function(*args, **kwargs)

        if not forked():
            return undisturbed()
        with ThreadPoolExecutor(1) as fresh:  # see forks.py
            return fresh.submit(undisturbed).result()

    return call


@contextmanager
def _thread_aside() -> Iterator[None]:
    """The modes of this thread: gradients on, normal tensors, no autocast, tensors where the code says."""
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        modes.enter_context(_no_autocast())
        if torch.get_default_device() != torch.device("cpu"):
            modes.enter_context(torch.device("cpu"))
        modes.callback(setattr, _inside, "call", getattr(_inside, "call", False))
        _inside.call = True
        yield


@contextmanager
def _no_autocast() -> Iterator[None]:
    """As if there were none around.

    Inside a `torch.autocast(..., enabled=False)` the casts that the code below asks for would outlive it: torch forgets
    cast weights when it leaves the outermost one.
    """
    accelerator = torch.accelerator.current_accelerator()
    kinds = {"cpu", "cpu" if accelerator is None else accelerator.type}
    enabled = {kind: torch.is_autocast_enabled(kind) for kind in kinds}
    torch.autocast_increment_nesting()
    depth = torch.autocast_decrement_nesting()
    for _ in range(depth):
        torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()
    for kind in kinds:
        torch.set_autocast_enabled(kind, False)
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        for _ in range(depth):
            torch.autocast_increment_nesting()
        for kind, was in enabled.items():
            torch.set_autocast_enabled(kind, was)


@contextmanager
def _process_aside() -> Iterator[None]:
    global _calls
    with _lock:
        _calls += 1
        if _calls == 1:
            _put_aside(_aside)
    try:
        yield
    finally:
        with _lock:
            _calls -= 1
            if _calls == 0:
                _aside.close()


def _put_aside(restore: ExitStack) -> None:
    restore.callback(torch.set_default_dtype, torch.get_default_dtype())
    torch.set_default_dtype(torch.float32)
    restore.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("highest")
    restore.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        restore.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
    restore.callback(setattr, tqdm, "__init__", tqdm.__init__)
    tqdm.__init__ = _without_bar(tqdm.__init__)


def _without_bar(init: Callable[..., None]) -> Callable[..., None]:
    """Bars that are made in a call are not drawn, whatever their maker says; those of other threads are."""

    @wraps(init)
    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        if getattr(_inside, "call", False):
            kwargs["disable"] = True
        init(self, *args, **kwargs)

    return make
