"""Sums over groups in the order of the kernels, so that torch's operators and they find the same bits.

Sixteen sums side by side, of every sixteenth number each; these are added in halves.
"""

import torch
import torch.nn.functional as F

LANES = 16


def sum_groups(x: torch.Tensor) -> torch.Tensor:
    """The sum over the last dimension, which is kept: `[..., g]` to `[..., 1]`."""
    lanes = F.pad(x, (0, -x.shape[-1] % LANES)).unflatten(-1, (-1, LANES))
    total = lanes[..., 0, :]
    for index in range(1, lanes.shape[-2]):
        total = total + lanes[..., index, :]
    while total.shape[-1] > 1:
        half = total.shape[-1] // 2
        total = total[..., :half] + total[..., half:]
    return total
