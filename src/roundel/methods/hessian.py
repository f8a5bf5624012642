"""Second moments of a Linear's inputs, and the factor of them that guides rounding.

    H = 1/N sum_t x_t x_t^T

is, up to a factor 2 that changes nothing, the Hessian of the layer's squared output error tr(E H E^T). The
searched grid needs its diagonal only; GPTQ and SpQR need all of it, factorized.
"""

from dataclasses import dataclass

import torch

from roundel.errors import NonFiniteError
from roundel.system.ranks import Ranks

# Columns per stripe of the symmetric update: wide enough for a fast matrix product.
_STRIPE = 512
_MORE_DAMPING = 10.0
_MOST_DAMPING = 100.0


class HessianDiagonal:
    """Accumulates `mean_t x_tj^2` over batches of inputs, in fp32."""

    def __init__(self) -> None:
        self.total: torch.Tensor | None = None
        self.tokens = 0

    def add(self, inputs: torch.Tensor) -> None:
        """Count `inputs [..., in]`."""
        flat = inputs.detach().float().reshape(-1, inputs.shape[-1])
        squares = flat.square().sum(0)
        self.total = squares if self.total is None else self.total.add_(squares)
        self.tokens += flat.shape[0]

    def join(self, ranks: Ranks, width: int, device: torch.device) -> None:
        """Count what other ranks have seen."""
        self.total, self.tokens = _joined(self.total, self.tokens, ranks, (width,), device)

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

    def join(self, ranks: Ranks, width: int, device: torch.device) -> None:
        """Count what other ranks have seen."""
        self.total, self.tokens = _joined(self.total, self.tokens, ranks, (width, width), device)

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


def _joined(
    total: torch.Tensor | None, tokens: int, ranks: Ranks, shape: tuple[int, ...], device: torch.device
) -> tuple[torch.Tensor | None, int]:
    if ranks.size == 1:
        return total, tokens
    seen = int(ranks.total(tokens))
    total = torch.zeros(shape, dtype=torch.float32, device=device) if total is None else total
    ranks.sum(total)
    return (total if seen else None), seen


@dataclass(frozen=True)
class Factor:
    """H + damping = R R^T.

    Attributes:
        root: R, `[in, in]` fp32, upper triangular.
        damping: what was added, as a share of the mean of H's diagonal.
    """

    root: torch.Tensor
    damping: float

    @property
    def importance(self) -> torch.Tensor:
        """`[in]`: R_jj^2, what a squared error of column j costs once later columns have made up for it."""
        return self.root.diagonal().square()


def factorize(hessian: torch.Tensor, damping: float) -> Factor:
    """Factorize a Hessian, with as much damping as it takes.

    The papers take the upper Cholesky factor U of the damped H's inverse. R = U^-1 holds the same numbers
    (d_j = U_jj = 1 / R_jj) and is one Cholesky factorization of H with rows and columns in reverse order: no
    inverse, a quarter of the work, and nothing lost to an inversion in fp32.

    Args:
        hessian: `[in, in]` fp32, symmetric.
        damping: share of the mean of its diagonal to add; raised tenfold as often as the factorization fails.

    Raises:
        NonFiniteError: H holds NaN or infinity, or no damping helps.
    """
    if not torch.isfinite(hessian).all():
        raise NonFiniteError("the second moments of the inputs hold NaN or infinity")
    mean = float(hessian.diagonal().mean())
    while damping <= _MOST_DAMPING:
        damped = hessian.flip(0, 1)
        # All inputs zero: any positive number will do.
        damped.diagonal().add_(damping * mean if mean > 0 else 1.0)
        # In place: of a wide layer each copy is hundreds of megabytes.
        lower, failed = torch.linalg.cholesky_ex(
            damped, out=(damped, torch.empty(0, dtype=torch.int32, device=damped.device))
        )
        if not failed:
            return Factor(lower.flip(0, 1), damping)
        damping = max(damping * _MORE_DAMPING, 1e-4)
    raise NonFiniteError(
        f"the second moments of the inputs cannot be factorized, even with damping {_MOST_DAMPING}"
    )
