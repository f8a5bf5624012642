"""Second moments of a Linear's inputs, accumulated over the calibration data of all ranks.

    H = 1/N sum_t x_t x_t^T

is, up to a factor 2 that changes nothing, the Hessian of the layer's squared output error tr(E H E^T). The
searched grid needs its diagonal only; GPTQ and SpQR need all of it.
"""

import torch

from roundel.system.ranks import Ranks

# Columns per stripe of the symmetric update: wide enough for a fast matrix product.
_STRIPE = 512


def squares(inputs: torch.Tensor) -> torch.Tensor:
    """`sum_t x_tj^2`, `[in]` fp32, of `inputs [..., in]`."""
    return inputs.detach().float().reshape(-1, inputs.shape[-1]).square().sum(0)


class HessianDiagonal:
    """Accumulates `mean_t x_tj^2` over batches of inputs, in fp32."""

    def __init__(self) -> None:
        self.total: torch.Tensor | None = None
        self.tokens = 0

    def add(self, summed: torch.Tensor, tokens: int) -> None:
        """Count the `squares [in]` of so many tokens."""
        self.total = summed.clone() if self.total is None else self.total.add_(summed)
        self.tokens += tokens

    def reduce(self, ranks: Ranks, width: int, device: torch.device) -> None:
        """Count what other ranks have seen."""
        self.total, self.tokens = _reduced(self.total, self.tokens, ranks, (width,), device)

    def mean(self) -> torch.Tensor | None:
        """`[in]`, or None if nothing was seen."""
        return None if self.total is None else self.total / self.tokens


class Hessian:
    """Accumulates H over batches of inputs, in fp32.

    Only the stripes on and above the diagonal are computed, which saves half of the multiply-adds of a wide
    layer.
    """

    def __init__(self) -> None:
        self.total: torch.Tensor | None = None
        self.tokens = 0

    def add(self, inputs: torch.Tensor) -> None:
        """Count `inputs [..., in]`."""
        rows = inputs.detach().float().reshape(-1, inputs.shape[-1])
        width = rows.shape[1]
        if self.total is None:
            self.total = torch.zeros(width, width, dtype=torch.float32, device=rows.device)
        for first in range(0, width, _STRIPE):
            last = min(first + _STRIPE, width)
            self.total[first:last, first:].addmm_(rows[:, first:last].t(), rows[:, first:])
        self.tokens += rows.shape[0]

    def reduce(self, ranks: Ranks, width: int, device: torch.device) -> None:
        """Count what other ranks have seen."""
        self.total, self.tokens = _reduced(self.total, self.tokens, ranks, (width, width), device)

    def mean(self) -> torch.Tensor:
        """H, `[in, in]` fp32, symmetric."""
        assert self.total is not None, "no inputs were seen"
        self._mirror(self.total)
        return self.total / self.tokens

    def take_mean(self) -> torch.Tensor:
        """The same in the memory of the sum, which is gone then."""
        assert self.total is not None, "no inputs were seen"
        mean, self.total = self.total, None
        self._mirror(mean)
        return mean.div_(self.tokens)

    @staticmethod
    def _mirror(total: torch.Tensor) -> None:
        """What lies above the diagonal, below it as well."""
        for first in range(0, len(total), _STRIPE):
            last = first + _STRIPE
            square = total[first:last, first:last]
            square.copy_(square.triu() + square.triu(1).t())
            total[last:, first:last] = total[first:last, last:].t()


def _reduced(
    total: torch.Tensor | None, tokens: int, ranks: Ranks, shape: tuple[int, ...], device: torch.device
) -> tuple[torch.Tensor | None, int]:
    if ranks.size == 1:
        return total, tokens
    seen = int(ranks.total(tokens))
    total = torch.zeros(shape, dtype=torch.float32, device=device) if total is None else total
    ranks.sum(total)
    return (total if seen else None), seen
