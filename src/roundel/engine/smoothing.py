"""SmoothQuant (arXiv 2211.10438, eq. 4): the size of input channels is moved into the weights.

    s_j = max|X_j|^a / max|W_:j|^(1 - a)        norm / s,  W_:j s_j

The norm before the Linears takes 1 / s into its weight (and bias), so nothing is computed at run time and the model
stays the same function. Which norm feeds which Linears is seen by running the block, and that nothing else reads the
norm is seen by running it again: where its output changed, the fold is taken back.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn

from roundel.engine.observers import Watch, sharing_inputs, tensor_key
from roundel.model.linears import LinearView
from roundel.system.ranks import ALONE, Ranks

# Largest relative change of a block's output, in float32, that a fold may cause.
_TOLERANCE = 1e-4
_SMALLEST = 1e-5
# Norms multiply by their weight, or (Gemma) by 1 + weight.
_NORM_ORIGINS = (0.0, 1.0)


@dataclass(frozen=True)
class Smoothing:
    """What became of a Linear.

    Attributes:
        done: its weight was changed.
        summary: the same for the coverage table, and why not, or where the scale went.
    """

    done: bool
    summary: str


def smooth_block(
    block: nn.Module,
    views: list[LinearView],
    run_sample: Callable[[], torch.Tensor],
    run_everything: Callable[[], object],
    exponent: float,
    ranks: Ranks = ALONE,
) -> dict[str, Smoothing]:
    """Smooth the Linears of a block, in place.

    Args:
        block: the decoder block, in float32.
        views: its Linears that will be quantized.
        run_sample: runs the block on a little data, the same on all ranks; its output decides whether a fold is sound.
        run_everything: runs the block on all calibration data.
        exponent: a.
        ranks: that share the data.

    Returns:
        What became of every Linear, by name.
    """
    norms = _norms_before(block, views, run_sample)
    largest = {view.name: _Largest() for view in views}
    with Watch([(view, largest[view.name].add) for view in views]):
        run_everything()
    for view in views:
        largest[view.name].reduce(ranks, view)
    found: dict[str, Smoothing] = {}
    for group in sharing_inputs(run_sample, views):
        smoothing = _smooth_group(
            group, norms.get(group[0].name), largest[group[0].name].value, run_sample, exponent
        )
        found |= {view.name: smoothing for view in group}
    return found


class _Largest:
    """max|X_j| over all tokens."""

    def __init__(self) -> None:
        self.value: torch.Tensor | None = None

    def add(self, inputs: torch.Tensor) -> None:
        found = inputs.detach().float().abs().flatten(0, -2).amax(0)
        self.value = found if self.value is None else torch.maximum(self.value, found)

    def reduce(self, ranks: Ranks, view: LinearView) -> None:
        if not ranks.any(self.value is not None):
            return
        found = self.value if self.value is not None else view.weight.new_zeros(view.shape[1])
        self.value = ranks.max(found)


def _norms_before(
    block: nn.Module, views: list[LinearView], run_sample: Callable[[], object]
) -> dict[str, tuple[str, nn.Module]]:
    """The norm whose output a Linear reads, with its name in the block, by the Linear's name."""
    made: dict[tuple[int, ...], tuple[str, nn.Module]] = {}
    kept: list[torch.Tensor] = []  # alive, so that no address is used twice
    read: dict[str, tuple[int, ...]] = {}

    def maker(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def note(module: nn.Module, args: tuple[object, ...], output: object) -> None:
            if isinstance(output, torch.Tensor):
                kept.append(output)
                made[tensor_key(output)] = (name, module)

        return note

    def reader(name: str) -> Callable[[torch.Tensor], None]:
        def note(inputs: torch.Tensor) -> None:
            kept.append(inputs)
            read[name] = tensor_key(inputs)

        return note

    with ExitStack() as hooks:
        for name, module in block.named_modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, nn.Parameter) and weight.ndim == 1:
                hooks.callback(module.register_forward_hook(maker(name)).remove)
        hooks.enter_context(Watch([(view, reader(view.name)) for view in views]))
        run_sample()
    return {name: made[key] for name, key in read.items() if key in made}


@torch.no_grad()
def _smooth_group(
    group: list[LinearView],
    norm: tuple[str, nn.Module] | None,
    largest: torch.Tensor | None,
    run_sample: Callable[[], torch.Tensor],
    exponent: float,
) -> Smoothing:
    if norm is None or largest is None:
        return Smoothing(False, "not smoothed: no norm before it")
    name, module = norm
    weight_size = torch.stack([view.weight.abs().amax(0) for view in group]).amax(0)
    scale = largest.clamp_min(_SMALLEST).pow(exponent) / weight_size.clamp_min(_SMALLEST).pow(1 - exponent)
    scale = scale.clamp_min(_SMALLEST)
    parameters = dict(module.named_parameters(recurse=False))
    tensors = [*parameters.values(), *(view.parameter for view in group)]
    before = [tensor.detach().clone() for tensor in tensors]
    wanted = run_sample()
    for origin in _NORM_ORIGINS:
        for key, parameter in parameters.items():
            start = origin if key == "weight" else 0.0
            parameter.copy_((parameter + start) / scale - start)
        for view in group:
            view.weight.mul_(scale)
        error = (run_sample() - wanted).square().sum() / wanted.square().sum().clamp_min(1e-30)
        if float(error.sqrt()) < _TOLERANCE:
            return Smoothing(True, f"smoothed into {name}")
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)
    return Smoothing(False, f"not smoothed: {name} feeds more than these Linears")
