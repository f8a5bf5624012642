"""What keeping a weight as an outlier would save its group: SpQR's leave-one-out (arXiv 2306.03078, section 3.2).

    score_k = sum_i R_ii^2 (Q(w_i) - w_i)^2 - sum_{i != k} R_ii^2 (Q'(w_i) - w_i)^2,     Q' fitted without k,

in units of the output error (R_ii = 1/d_i of the paper). Leaving out a weight that is neither its group's smallest
nor largest leaves the range as it is: it saves the weight's own error. So three fits per group do the work of g + 1.

By a kernel where there is one for the grid, or by torch's operators, which find the same bits.
"""

import torch

from roundel.compiled import two_level as kernel
from roundel.grid.affine import QParams, decode_, nearest_codes
from roundel.grid.groups import importance_groups
from roundel.grid.joint import joint_tries
from roundel.grid.lanes import sum_groups
from roundel.methods.gptq import ErrorFeedback


class OutlierScores:
    """The scores of all weights, `values [in, out]` by position; `add` takes group after group of the loop."""

    def __init__(self, loop: ErrorFeedback, *, simplified: bool) -> None:
        self.loop, self.simplified = loop, simplified
        self.values = torch.zeros_like(loop.original)
        if loop.start is not None:
            self._all_groups(loop.start)

    def _all_groups(self, start: QParams) -> None:
        """Score weights whose grids are fitted before the loop, as they are."""
        loop = self.loop
        for group in range(start.scale.shape[1]):
            positions = (loop.layout.group_of == group).nonzero()[:, 0]
            own = QParams(start.scale[:, group, None], start.zero[:, group, None])
            self.values[positions] = self._group(loop.original[positions], own, loop.importance[positions])

    def add(self, first: int, last: int, columns: torch.Tensor, start: QParams) -> None:
        """Score positions `[first, last)`, weights `columns [g, out]` of the grid `start`."""
        self.values[first:last] = self._group(columns, start, self.loop.importance[first:last])

    def _group(self, columns: torch.Tensor, start: QParams, importance: torch.Tensor) -> torch.Tensor:
        if self.simplified or len(columns) < 3:
            return self._errors(columns, start, importance)
        scheme = self.loop.scheme
        if not kernel.serve(columns, scheme):
            return self._leave_one_out(columns, start, importance)
        scale, zero = start.scale[:, 0, 0], start.stored_zero(scheme)[:, 0, 0]
        return kernel.leave_one_out(
            columns.contiguous(),
            importance_groups(importance, columns.t(), scheme)[0, 0],
            scheme,
            joint_tries(scheme, search=self.loop.kind == "search"),
            importance.contiguous(),
            scale.contiguous(),
            zero.contiguous(),
        )

    def _leave_one_out(self, columns: torch.Tensor, start: QParams, importance: torch.Tensor) -> torch.Tensor:
        own = self._errors(columns, start, importance)
        # Both extremes at once: the columns side by side, the smallest, and the largest, in the middle of the rest.
        places = torch.cat([columns.argmin(0), columns.argmax(0)])[None]
        extremes = torch.cat([columns.amin(0), columns.amax(0)])
        middle = (_sums(columns).repeat(2) - extremes) / (len(columns) - 1)
        twice = columns.repeat(1, 2).scatter_(0, places, middle[None])
        rest = self._errors(twice, self._fit_each(twice, importance), importance)
        saved = _sums(own).repeat(2) - (_sums(rest) - rest.gather(0, places)[0])
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


def _sums(columns: torch.Tensor) -> torch.Tensor:
    """Over the columns of `[g, out]`, in the order of the kernel."""
    return sum_groups(columns.t())[:, 0]
