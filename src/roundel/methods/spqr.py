"""SpQR: GPTQ on tiny groups with two-level statistics, and the costliest weights kept in 16 bits (2306.03078).

Outliers are chosen between two passes of the error-feedback loop. The first keeps none and scores every weight
by what leaving it out would save its group (leave_one_out.py). Then the outliers are fixed, by a threshold, a share or
a budget of bits, and the second pass rounds the rest.

The paper decides inside one pass, where an outlier changes everything to its right. Two passes cost one more
loop and buy three things: at the same number of outliers the error is 2 % lower (two blocks of SmolLM2-135M,
3 bit, 1 %), a higher threshold never gives more of them, and a budget is met exactly.
"""

import numpy as np
import torch

from roundel.grid.budget import outliers_within
from roundel.grid.scheme import Scheme
from roundel.methods.cholesky import SharedFactor
from roundel.methods.gptq import ErrorFeedback, Rounded
from roundel.methods.leave_one_out import OutlierScores
from roundel.methods.options import HessianOptions


def spqr(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    scheme: Scheme,
    options: HessianOptions,
    kind: str,
    shared: SharedFactor | None = None,
) -> Rounded:
    """Round a weight with error feedback and outliers.

    Args:
        weight: `[out, in]` fp32, finite.
        hessian: `[in, in]` fp32, second moments of the inputs.
        scheme: which grid.
        options: order, damping, and one of outlier_threshold, outliers, target_bits; without any of them no
            weight is an outlier.
        kind: how grids are fitted, `minmax` or `search`.
        shared: the same for all weights that are rounded by this Hessian.

    Raises:
        NonFiniteError: the Hessian cannot be factorized.
    """
    loop = ErrorFeedback(weight, hessian, scheme, options, kind, shared)
    if options.outlier_threshold is None and not options.outliers and options.target_bits is None:
        return loop.round()
    scores = OutlierScores(loop, simplified=options.simplified_outliers)
    loop.watch(scores.add)
    mask = _choose(scores.values, loop, options)
    del scores  # before the second pass takes as much memory
    return loop.round(mask if bool(mask.any()) else None)


def _choose(scores: torch.Tensor, loop: ErrorFeedback, options: HessianOptions) -> torch.Tensor:
    """The outliers, `[in, out]` by position."""
    if options.outlier_threshold is not None:
        return scores > options.outlier_threshold * _typical_error(loop)
    if options.target_bits is not None:
        out, width = loop.weight.shape
        count = outliers_within(options.target_bits, loop.scheme, (out, width), permuted=loop.layout.permuted)
    else:
        count = round((options.outliers or 0.0) * scores.numel())
    return _largest(scores.flatten(), count).view_as(scores)


def _largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Which of `scores [n]` are the largest; the first ones among those equal to the least of them."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    # torch's topk and kthvalue take ten times as long.
    least = float(np.partition(scores.cpu().numpy(), len(scores) - count)[len(scores) - count])
    chosen = scores > least
    equal = (scores == least).nonzero()[:, 0]
    chosen[equal[: count - int(chosen.sum())]] = True
    return chosen


def _typical_error(loop: ErrorFeedback) -> torch.Tensor:
    """Mean over the columns of Var(W_j) / d_j^2, the unit of the paper's threshold."""
    return (loop.original.var(1, correction=0) * loop.importance).mean()
