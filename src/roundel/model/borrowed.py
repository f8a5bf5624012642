"""A caller's model in memory is lent: after the call it is as it was.

The caller of a model in training goes on training it. Inside, a model is in eval mode, without gradients, moved
to where it computes, its experts are seen one by one, its code runs as it is written and not as it was compiled; other
libraries set what they need in its config. So everything by which modules and configs differ is written down before,
and put back after: modes, hooks, members, classes, parameters and buffers as objects, where their values are, whether
they want gradients, and the gradients, which are out of sight meanwhile. Values themselves are nobody's to change but
the quantizer's.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig

_CONFIGS = (PreTrainedConfig, GenerationConfig)
_PLAIN = (dict, list, set)
# Where torch keeps what `module.compile()` has made.
_COMPILED = "_compiled_call_impl"


@contextmanager
def borrowed(model: object) -> Iterator[None]:
    """Inside a model may be looked at and run, in any mode; afterwards, also after an error, it is as it was.

    Args:
        model: whose values do not change inside. Anything but a model is not looked at.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    restore = _written_down(model, values=True)
    _make_ready(model)
    try:
        yield
    finally:
        restore()


@contextmanager
def taken(model: object) -> Iterator[None]:
    """Inside, a model may be changed permanently; after an error it is as it was, but for the values of its weights.

    Args:
        model: that is changed. Anything but a model is not looked at.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    restore = _written_down(model, values=False)
    _make_ready(model)
    try:
        yield
    except BaseException:
        restore()
        raise


def _make_ready(model: nn.Module) -> None:
    """Eval mode, no gradients, old or new, and code that runs as it is written."""
    model.eval()
    for parameter in model.parameters():
        parameter.grad = None
        if parameter.requires_grad and not parameter.is_inference():
            parameter.requires_grad_(False)
    for module in model.modules():
        if module.__dict__.get(_COMPILED) is not None:
            module.__dict__[_COMPILED] = None


def _written_down(model: nn.Module, *, values: bool) -> Callable[[], None]:
    """Write down what a model is; the result puts it back.

    Args:
        model: to be looked at.
        values: keep the memory in which values are, so that views of it stay such; else values are moved back to their
            device and type, as they are then.
    """
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    kept = [_tensor_written_down(t, values=values) for t in tensors.values()]
    kept += [_object_written_down(module) for module in model.modules()]
    kept += [_object_written_down(config) for config in _configs_of(model)]

    def restore() -> None:
        for undo in reversed(kept):
            undo()

    return restore


def _tensor_written_down(tensor: torch.Tensor, *, values: bool) -> Callable[[], None]:
    home, dtype = tensor.device, tensor.dtype
    data = tensor.data if values and not tensor.is_inference() else None
    grad, wanted = tensor.grad, tensor.requires_grad

    def restore() -> None:
        if tensor.is_inference():
            return  # it was replaced, and is back as it was
        there = tensor.device == home and tensor.dtype == dtype
        if data is not None:
            if not there or tensor.data_ptr() != data.data_ptr():
                if there:  # a trial has put its values back, elsewhere
                    data.copy_(tensor.data)
                tensor.data = data
        elif not there:
            tensor.data = tensor.data.to(home, dtype)
        if tensor.requires_grad != wanted:
            tensor.requires_grad_(wanted)
        tensor.grad = grad

    return restore


def _object_written_down(thing: Any) -> Callable[[], None]:
    """Class and attributes; of attributes that are containers the members too."""
    kind, before = type(thing), dict(thing.__dict__)
    members = {key: copy.copy(value) for key, value in before.items() if isinstance(value, _PLAIN)}

    def restore() -> None:
        if type(thing) is not kind:
            thing.__class__ = kind
        for key, found in members.items():
            container = before[key]
            if _same(container, found):
                continue
            container.clear()
            container.extend(found) if isinstance(container, list) else container.update(found)
        if not _same(thing.__dict__, before):
            thing.__dict__.clear()
            thing.__dict__.update(before)

    return restore


def _same(one: Any, other: Any) -> bool:
    """Whether two containers hold the same objects, in the same order."""
    if len(one) != len(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(one[key] is other[key] for key in one)
    if isinstance(one, set):
        return bool(one == other)
    return all(a is b for a, b in zip(one, other, strict=True))


def _configs_of(model: nn.Module) -> list[Any]:
    """All configs that modules have, and those inside of these."""
    found: dict[int, Any] = {}
    waiting = [value for module in model.modules() for value in module.__dict__.values()]
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, _CONFIGS) and id(thing) not in found:
            found[id(thing)] = thing
            waiting += thing.__dict__.values()
    return list(found.values())
