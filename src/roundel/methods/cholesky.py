"""The factor of a Hessian that guides rounding with error feedback (GPTQ, SpQR)."""

import math
from dataclasses import dataclass

import torch

from roundel.errors import NonFiniteError

_MORE_DAMPING = 10.0
_MOST_DAMPING = 100.0


@dataclass(frozen=True)
class Factor:
    """H + damping = R R^T, R upper triangular.

    Attributes:
        update: `[in, in]` fp32, row k: R_ik / R_kk, what column k makes up of an error of column i.
        importance: `[in]` fp32: R_jj^2, what a squared error of column j costs once later columns have made up for it.
        damping: what was added, as a share of the mean of H's diagonal.
    """

    update: torch.Tensor
    importance: torch.Tensor
    damping: float


class SharedFactor:
    """The factor of a Hessian that several Linears share (queries, keys and values; gate and up), computed once.

    They are rounded one after the other, so the last factor is remembered, and no other.
    """

    def __init__(self) -> None:
        self._known: tuple[torch.Tensor, torch.Tensor, float] | None = None
        self._factor: Factor | None = None

    def of(self, hessian: torch.Tensor, order: torch.Tensor, damping: float) -> Factor:
        """The factor of `hessian [in, in]` with rows and columns in an order `[in]`; as `factorize`."""
        if self._factor is not None and self._known is not None:
            known, ordered, damped = self._known
            if known is hessian and damped == damping and torch.equal(ordered, order):
                return self._factor
        self._factor = self._known = None  # before the next one takes as much memory
        self._factor = factorize(hessian, order, damping)
        self._known = hessian, order, damping
        return self._factor


def factorize(hessian: torch.Tensor, order: torch.Tensor, damping: float) -> Factor:
    """Factorize a Hessian, with as much damping as it takes.

    The papers take the upper Cholesky factor U of the damped H's inverse. R = U^-1 holds the same numbers
    (d_j = U_jj = 1 / R_jj) and is one Cholesky factorization of H with rows and columns in reverse order: no
    inverse, a quarter of the work, and nothing lost to an inversion in fp32.

    Args:
        hessian: `[in, in]` fp32, symmetric.
        order: `[in]`, that of the factor's rows and columns.
        damping: share of the mean of H's diagonal to add; raised tenfold as often as the factorization fails.

    Raises:
        NonFiniteError: H holds NaN or infinity, or no damping helps.
    """
    mean = float(hessian.diagonal().mean())
    not_finite = NonFiniteError("the second moments of the inputs hold NaN or infinity")
    if not math.isfinite(mean):
        raise not_finite
    backwards = order.flip(0)
    while damping <= _MOST_DAMPING:
        # Symmetric, so that its columns may be its rows: LAPACK's are contiguous.
        damped = hessian[backwards[:, None], backwards].t()
        # All inputs zero: any positive number will do.
        damped.diagonal().add_(damping * mean if mean > 0 else 1.0)
        # In place: of a wide layer each copy is hundreds of megabytes.
        lower, failed = torch.linalg.cholesky_ex(
            damped, out=(damped, torch.empty(0, dtype=torch.int32, device=damped.device))
        )
        if not failed:
            transposed = lower.t().flip(0, 1)
            diagonal = transposed.diagonal().clone()
            return Factor(transposed.div_(diagonal[:, None]), diagonal.square(), damping)
        # What is not finite beside the diagonal has no factor: it reaches the diagonal of its row.
        if not torch.isfinite(hessian).all():
            raise not_finite
        damping = max(damping * _MORE_DAMPING, 1e-4)
    raise NonFiniteError(
        f"the second moments of the inputs cannot be factorized, even with damping {_MOST_DAMPING}"
    )
