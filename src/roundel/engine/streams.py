"""The activations between blocks: what enters each block, for all calibration samples.

Two streams run through the model side by side: `original`, the unquantized model's, whose block outputs are
the targets, and `quantized`, the output of the blocks quantized so far, which is what a block will meet in
service. A method that trains on unquantized inputs runs without the second, one without targets (GPTQ, SpQR)
without the first.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from roundel.errors import NonFiniteError

Run = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Streams:
    """Inputs of the present block, `[N, S, H]` fp32; None where no method needs the stream."""

    original: torch.Tensor | None
    quantized: torch.Tensor | None

    @property
    def inputs(self) -> torch.Tensor:
        """What the block is quantized on."""
        inputs = self.original if self.quantized is None else self.quantized
        assert inputs is not None
        return inputs


def relative_error(streams: Streams) -> float:
    """Mean over the tokens of |quantized - original|^2 / |original|^2, sample by sample to save memory."""
    assert streams.original is not None
    assert streams.quantized is not None
    total = 0.0
    for wanted, found in zip(streams.original, streams.quantized, strict=True):
        power = wanted.square().mean(-1).clamp_min(1e-30)
        total += float(((found - wanted).square().mean(-1) / power).mean())
    return total / len(streams.original)


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
