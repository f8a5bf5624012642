"""Linears, whatever their class: one view with the weight as `[out, in]`.

`nn.Linear` stores `[out, in]`; GPT-2's `Conv1D` stores `[in, out]`; an expert may be a slice of a larger tensor
(experts.py); a class of the user's own is a Linear if it says how many features go in and out and has a weight of that
shape, or makes one when it is asked for it, as packed Linears do (runtime/). Everything above this file sees one shape.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from roundel.model.experts import Expert, stacks_in


@dataclass(frozen=True)
class LinearView:
    """A Linear-like module under its full name in the model."""

    name: str
    module: nn.Module

    @property
    def transposed(self) -> bool:
        """Whether the module stores `[in, out]`."""
        return isinstance(self.module, Conv1D)

    @property
    def parameter(self) -> nn.Parameter:
        """The module's own weight, in its own layout."""
        return self.module.weight  # type: ignore[return-value]

    @property
    def weight(self) -> torch.Tensor:
        """The weight as `[out, in]`, detached; shares memory with the module."""
        weight = self.parameter.detach()
        return weight.t() if self.transposed else weight

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        if _makes_weight(self.module):
            return self.module.out_features, self.module.in_features  # type: ignore[return-value]
        out, width = self.weight.shape
        return out, width

    def write(self, weight: torch.Tensor) -> None:
        """Replace the weight by `weight [out, in]`, converted to the module's type and device."""
        self.weight.copy_(weight)

    def hold(self, weight: torch.Tensor) -> None:
        """Compute with `weight [out, in]` itself, of the module's type and device, from now on: no copy is made.

        But of an expert, which stays a part of its stack.
        """
        if isinstance(self.module, Expert):
            self.write(weight)
        else:
            self.parameter.data = weight.t().contiguous() if self.transposed else weight

    def want_gradient(self) -> None:
        """From now on, until it is taken."""
        if isinstance(self.module, Expert):
            self.module.learn(True)
        self.parameter.requires_grad_(True)

    def take_gradient(self) -> torch.Tensor:
        """The gradient of the weight, `[out, in]`; the module is left without one and frozen.

        A weight that the loss does not depend on (an expert that saw no token) has a gradient of zero.
        """
        grad = self.parameter.grad
        self.forget_gradient()
        if grad is None:
            return torch.zeros_like(self.weight)
        return grad.t() if self.transposed else grad

    def forget_gradient(self) -> None:
        """None is expected any more."""
        self.parameter.grad = None
        self.parameter.requires_grad_(False)
        if isinstance(self.module, Expert):
            self.module.learn(False)


@contextmanager
def multiplying_in(dtype: torch.dtype, views: Iterable[LinearView]) -> Iterator[None]:
    """The weights of Linears in the type of their products inside; as they were, to the last bit, afterwards.

    Autocast would cast each of them in every pass. Experts are parts of their stacks, and stay.
    """
    parameters = [view.parameter for view in views if not isinstance(view.module, Expert)]
    kept = [parameter.data for parameter in parameters]
    for parameter, data in zip(parameters, kept, strict=True):
        parameter.data = data.to(dtype)
    try:
        yield
    finally:
        for parameter, data in zip(parameters, kept, strict=True):
            parameter.data = data


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies its input by a weight."""
    if isinstance(module, nn.Linear | Conv1D | Expert):
        return True
    weight: Any = module._parameters.get("weight")
    features = (getattr(module, "out_features", None), getattr(module, "in_features", None))
    if _makes_weight(module):
        return None not in features
    return weight is not None and weight.ndim == 2 and tuple(weight.shape) == features


def rows_of(module: Any) -> int:
    """Rows of the weight of an embedding or a Linear, which is not made for it."""
    if _makes_weight(module):
        return int(getattr(module, "num_embeddings", None) or module.out_features)
    return int(module.weight.shape[0])


def _makes_weight(module: nn.Module) -> bool:
    """Whether the weight is no tensor that is there, but made anew each time (and large)."""
    made = isinstance(getattr(type(module), "weight", None), property)
    return made and not isinstance(module, nn.Linear | Conv1D | nn.Embedding | Expert)


def linears_in(module: nn.Module, prefix: str) -> list[LinearView]:
    """All Linear-like modules below `module`, in definition order, then the experts of divided stacks.

    Args:
        module: a block, or a whole model.
        prefix: its name.
    """
    found = []
    for name, child in module.named_modules():
        if is_linear(child):
            found.append(LinearView(".".join(part for part in (prefix, name) if part), child))
    for name, stack in stacks_in(module, prefix).items():
        found += [LinearView(f"{name}.{index}", expert) for index, expert in enumerate(stack)]
    return found
