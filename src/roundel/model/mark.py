"""A model in memory that Roundel has quantized bears a mark, as a folder has its manifest.

Weights on a grid look like any others: quantized once more, to eight bits, a model of two bits would be said to have
eight, and to be close to its "original". The mark is an attribute of the model's object: a copy has it, what
`save_pretrained` writes has not, and a model that is opened anew is new.

It holds only as long as the weights do. For every matrix that a run changed it knows some of the values that were left
there; where other values stand, because the original's weights were loaded into the same object or it was trained on,
that matrix is quantized no more. A copy in half precision still has the values, rounded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from roundel.errors import ModelError

# What is said of a model whose run did not come to its end.
BROKEN_OFF = "in part, by a run that did not end"
_ATTRIBUTE = "roundel_mark"
_SAMPLES = 256
_HALVES = (torch.bfloat16, torch.float16)


@dataclass
class _Mark:
    """What was done to a model.

    Attributes:
        summary: what it is now.
        samples: some values of every changed matrix, by its name.
    """

    summary: str
    samples: dict[str, torch.Tensor] = field(default_factory=dict)


def broken_off(name: str) -> ModelError:
    """The error about a model that is neither the original nor a result."""
    return ModelError(
        f"{name} was changed in part, by a run of Roundel that did not come to its end: the original model is "
        "expected; open it anew"
    )


def mark_of(model: nn.Module) -> str:
    """What Roundel has made of a model, in words; empty where it has the weights of its source."""
    mark: _Mark | None = getattr(model, _ATTRIBUTE, None)
    if mark is None:
        return ""
    now = _samples(model)
    held = any(name in now and _still(left, now[name]) for name, left in mark.samples.items())
    return mark.summary if held else ""


@contextmanager
def marking(model: object) -> Iterator[None]:
    """What a run changes inside is marked as broken off; `put_mark` says what it is where it comes to its end.

    Args:
        model: in memory; else nothing is done.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    before = _samples(model)
    try:
        yield
    finally:
        now = _samples(model)
        changed = {n: s for n, s in now.items() if n not in before or not torch.equal(s, before[n])}
        if changed:
            older: _Mark | None = getattr(model, _ATTRIBUTE, None)
            kept = {} if older is None else {n: s for n, s in older.samples.items() if n not in changed}
            setattr(model, _ATTRIBUTE, _Mark(BROKEN_OFF, {**kept, **changed}))


def put_mark(model: nn.Module, words: str, layers: list[str] | None = None) -> None:
    """Say what a model is.

    Args:
        model: that was marked, or was opened from what Roundel wrote.
        words: what it is.
        layers: names of its quantized Linears; None: what was marked already.
    """
    mark: _Mark | None = getattr(model, _ATTRIBUTE, None)
    if layers is None:
        if mark is not None:
            mark.summary = words
        return
    # Experts that share a tensor are below its name.
    held = {f"{layer}.weight" for layer in layers} | {layer.rpartition(".")[0] for layer in layers}
    samples = {name: sample for name, sample in _samples(model).items() if name in held}
    setattr(model, _ATTRIBUTE, _Mark(words, samples))


def _samples(model: nn.Module) -> dict[str, torch.Tensor]:
    """Some values of each matrix, spread over it, on the CPU."""
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if (
            parameter.ndim < 2
            or not parameter.numel()
            or not parameter.is_floating_point()
            or parameter.is_meta
        ):
            continue
        flat = parameter.detach().reshape(-1)
        places = torch.linspace(0, flat.numel() - 1, min(_SAMPLES, flat.numel()), dtype=torch.float64)
        found[name] = flat[places.long().to(flat.device)].cpu().clone()
    return found


def _still(left: torch.Tensor, now: torch.Tensor) -> bool:
    """Whether values are those that were left, in whatever floating point they went through since."""
    if left.shape != now.shape:
        return False
    ways = [left.to(now.dtype), *(left.to(half).to(now.dtype) for half in _HALVES)]
    return any(torch.equal(way, now) for way in ways)
