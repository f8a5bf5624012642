"""The activations between blocks: what enters each block, for all calibration samples.

Two streams run through the model side by side: `original`, the unquantized model's, whose block outputs are
the targets, and `quantized`, the output of the blocks quantized so far, which is what a block will meet in
service. A method that trains on unquantized inputs runs without the second.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from roundel.errors import NonFiniteError
from roundel.methods.hessian import HessianDiagonal
from roundel.model.linears import LinearView

Run = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Streams:
    """Inputs of the present block, `[N, S, H]` fp32; `quantized` is None where no method needs it."""

    original: torch.Tensor
    quantized: torch.Tensor | None

    @property
    def inputs(self) -> torch.Tensor:
        """What the block is tuned on."""
        return self.original if self.quantized is None else self.quantized


@torch.no_grad()
def run_all(run: Run, inputs: torch.Tensor, batch_size: int, device: torch.device, name: str) -> torch.Tensor:
    """A block on a whole stream, batch by batch: `[N, S, H]`, where and in the type that `inputs` has.

    Raises:
        NonFiniteError: an output is NaN or infinite; `name` is the block in the message.
    """
    outputs = torch.empty_like(inputs)
    for first in range(0, inputs.shape[0], batch_size):
        rows = slice(first, first + batch_size)
        outputs[rows] = run(inputs[rows].to(device)).to(outputs.device)
    if not torch.isfinite(outputs).all():
        raise NonFiniteError(f"the output of {name} holds NaN or infinity on the calibration data")
    return outputs


class InputStatistics:
    """Collects each Linear's `mean x_j^2` while a block runs."""

    def __init__(self, linears: list[LinearView]) -> None:
        self.diagonals = {view.name: HessianDiagonal() for view in linears}
        self._hooks = ExitStack()
        for view in linears:
            diagonal = self.diagonals[view.name]
            hook = view.module.register_forward_pre_hook(
                lambda module, args, diagonal=diagonal: diagonal.add(args[0])
            )
            self._hooks.callback(hook.remove)

    def mean_of(self, name: str) -> torch.Tensor | None:
        """`[in]`, or None for a Linear that was not watched or saw no token."""
        return self.diagonals[name].mean() if name in self.diagonals else None

    def __enter__(self) -> "InputStatistics":
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.close()
