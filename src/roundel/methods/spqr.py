"""SpQR: GPTQ on tiny groups with two-level statistics, and the costliest weights kept in 16 bits (2306.03078).

Outliers are chosen between two passes of the error-feedback loop. The first keeps none and scores every weight
by what leaving it out would save its group (the paper's leave-one-out, section 3.2),

    score_k = sum_i R_ii^2 (Q(w_i) - w_i)^2 - sum_{i != k} R_ii^2 (Q'(w_i) - w_i)^2,     Q' fitted without k,

in units of the output error (R_ii = 1/d_i of the paper). Then the outliers are fixed, by a threshold, a share or
a budget of bits, and the second pass rounds the rest.

Leaving out a weight that is neither its group's smallest nor largest leaves the range as it is: it saves the
weight's own error. So three fits per group do the work of g + 1.

The paper decides inside one pass, where an outlier changes everything to its right. Two passes cost one more
loop and buy three things: at the same number of outliers the error is 2 % lower (two blocks of SmolLM2-135M,
3 bit, 1 %), a higher threshold never gives more of them, and a budget is met exactly.
"""

import numpy as np
import torch

from roundel.grid.affine import QParams, decode_, nearest_codes
from roundel.grid.budget import outliers_within
from roundel.grid.scheme import Scheme
from roundel.methods.cholesky import SharedFactor
from roundel.methods.gptq import ErrorFeedback, Rounded
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
    scores = _Scores(loop, simplified=options.simplified_outliers)
    loop.watch(scores.add)
    mask = _choose(scores.values, loop, options)
    del scores  # before the second pass takes as much memory
    return loop.round(mask if bool(mask.any()) else None)


class _Scores:
    """What keeping each weight would save, `[in, out]` by position."""

    def __init__(self, loop: ErrorFeedback, *, simplified: bool) -> None:
        self.loop, self.simplified = loop, simplified
        self.values = torch.zeros_like(loop.original)
        if loop.start is not None:
            self._all_groups(loop.start)

    def _all_groups(self, start: QParams) -> None:
        """Score weights whose grids are fitted before the loop, as they are."""
        loop = self.loop
        group_of = torch.tensor(loop.layout.group_of, device=loop.original.device)
        for group in range(start.scale.shape[1]):
            positions = (group_of == group).nonzero()[:, 0]
            own = QParams(start.scale[:, group, None], start.zero[:, group, None])
            self.values[positions] = self._group(loop.original[positions], own, loop.importance[positions])

    def add(self, first: int, last: int, columns: torch.Tensor, start: QParams) -> None:
        self.values[first:last] = self._group(columns, start, self.loop.importance[first:last])

    def _group(self, columns: torch.Tensor, start: QParams, importance: torch.Tensor) -> torch.Tensor:
        own = self._errors(columns, start, importance)
        if self.simplified or len(columns) < 3:
            return own
        # Both extremes at once: the columns side by side, the smallest, and the largest, in the middle of the rest.
        smallest, largest = columns.min(0), columns.max(0)
        places = torch.cat([smallest.indices, largest.indices])[None]
        extremes = torch.cat([smallest.values, largest.values])
        middle = (columns.sum(0).repeat(2) - extremes) / (len(columns) - 1)
        twice = columns.repeat(1, 2).scatter_(0, places, middle[None])
        rest = self._errors(twice, self._fit_each(twice, importance), importance)
        saved = own.sum(0).repeat(2) - (rest.sum(0) - rest.gather(0, places)[0])
        for place, value in zip(places.chunk(2, 1), saved.chunk(2), strict=True):
            own.scatter_(0, place, value[None])
        return own

    def _fit_each(self, twice: torch.Tensor, importance: torch.Tensor) -> QParams:
        """Fit `[g, 2 out]` in one call, if no tile then holds rows of both halves."""
        out = twice.shape[1] // 2
        if not self.loop.scheme.two_level or out % self.loop.scheme.tile_rows == 0:
            return self.loop.fit(twice, importance)
        parts = [self.loop.fit(half, importance) for half in twice.split(out, 1)]
        return QParams(torch.cat([p.scale for p in parts]), torch.cat([p.zero for p in parts]))

    def _errors(self, columns: torch.Tensor, start: QParams, importance: torch.Tensor) -> torch.Tensor:
        scheme = self.loop.scheme
        scale, zero = start.scale[:, 0, 0], start.stored_zero(scheme)[:, 0, 0]
        codes = nearest_codes(columns, scale, start.code_zero(scheme)[:, 0, 0], scheme)
        return decode_(codes, scale, zero, scheme).sub_(columns).square_().mul_(importance[:, None])


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
