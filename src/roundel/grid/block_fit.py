"""Grids of GGUF's types, fitted as they are stored.

Scales and minima of the groups are found first, each group for itself. In a super-block they become small integers
times one number d (and one e for the minima), of which each group then tries those around the nearest,

    E = sum_j h_j (d a q_j - e b - w_j)^2

and for given a, b and codes q, E is quadratic in (d, e): their best values solve two equations over the whole
super-block, are rounded to fp16, and stay if the error is lower for it. Weighted by the inputs' second moments all the
way, so that a group that matters more has its scale met more closely.

llama.cpp chooses a, b and d from the group's own scales and does not look at the error of the super-block again.
"""

from itertools import product

import torch

from roundel.grid.affine import QParams, minmax_start, nearest_codes, round_minima, zero_in_codes
from roundel.grid.best_grid import grid_errors
from roundel.grid.groups import importance_groups, to_groups
from roundel.grid.minima import MinimaFit, solve_pairs
from roundel.grid.scheme import Scheme
from roundel.grid.search import searched_start
from roundel.grid.super_blocks import SuperBlocks, code_limits
from roundel.grid.two_level import Level, stack_levels

# Codes to either side of the present ones that are tried.
_REACH = (0, -1, 1)
_ROUNDS = 3
# Weights per chunk: intermediate tensors of this size stay in a core's second-level cache.
_CHUNK = 128 * 1024


def block_start(
    weight: torch.Tensor, scheme: Scheme, diagonal: torch.Tensor | None, *, search: bool
) -> QParams:
    """Fit every group's scale, and minimum, as stored.

    Args:
        weight: `[out, in]`, finite; rows are whole blocks.
        scheme: of a type.
        diagonal: `[in]`, importance of each input channel, or None.
        search: try other ranges and codes than the weights' own.
    """
    if not scheme.minima and not scheme.super_block:
        return searched_start(weight, scheme, diagonal) if search else minmax_start(weight, scheme)
    importance = importance_groups(diagonal, weight, scheme)
    rows = max(1, _CHUNK // weight.shape[1])
    parts = [_fit(part, importance, scheme, search) for part in weight.float().split(rows)]
    scale, zero = torch.cat([p.scale for p in parts]), torch.cat([p.zero for p in parts])
    return QParams(scale, zero, _stack([p.scale_level for p in parts]), _stack([p.zero_level for p in parts]))


def _stack(levels: list[Level | None]) -> Level | None:
    """Rows of one weight, below each other."""
    present = [level for level in levels if level is not None]
    return stack_levels(present) if present else None


def _fit(weight: torch.Tensor, importance: torch.Tensor, scheme: Scheme, search: bool) -> QParams:
    groups = to_groups(weight, scheme)
    if scheme.minima:
        fit = MinimaFit(groups, importance, scheme, below=scheme.super_block)
        if search:
            fit.search()
        if not scheme.super_block:
            return QParams(scheme.round_scale(fit.scale), round_minima(fit.minimum, scheme))
        scale, zero = fit.scale, fit.minimum
    else:
        # Scales are codes later, not numbers in 16 bits.
        plain = Scheme(bits=scheme.bits, group_size=scheme.group_size, sym=True, scale_dtype="float32")
        diagonal = importance.flatten()
        start = searched_start(weight, plain, diagonal) if search else minmax_start(weight, plain)
        scale, zero = start.scale, start.zero
    fitted = _BlockFit(groups, importance, scheme, scale, zero)
    for _ in range(_ROUNDS if search else 0):
        fitted.try_neighbours()
        fitted.refit()
    return fitted.result()


class _BlockFit:
    """The super-blocks of some rows: `groups [rows, G, g]`, S super-blocks a row.

    Attributes:
        step, code: d `[rows, S, 1, 1]` and a `[rows, S, k, 1]`; `low_step`, `low_code`: -e and b of the minima.
        error: `[rows, S, k, 1]`.
    """

    def __init__(
        self,
        groups: torch.Tensor,
        importance: torch.Tensor,
        scheme: Scheme,
        scale: torch.Tensor,
        zero: torch.Tensor,
    ) -> None:
        block = scheme.block_type
        assert block is not None
        self.scheme, self.bits, self.shape = scheme, block.scale_bits, groups.shape

        def by_block(x: torch.Tensor) -> torch.Tensor:
            return x.view(len(x), -1, block.groups, x.shape[-1])

        self.groups, self.importance = by_block(groups), by_block(importance)
        scale = by_block(scale)
        self.limits = code_limits(self.bits, not scheme.minima)
        self.step = self._spanning(scale)
        self.code = self._never_zero(scale / self.step, scale)
        if scheme.minima:
            minimum = by_block(zero)
            self.low_step = round_minima(minimum.amin(2, keepdim=True) / self.limits[1], scheme)
            self.low_code = self._nearest_low(minimum)
        self.error = self._errors(self.step, self.code, *self._low())

    def _low(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return (self.low_step, self.low_code) if self.scheme.minima else (None, None)

    def _spanning(self, scale: torch.Tensor) -> torch.Tensor:
        """d with which the scale that is farthest from zero has the code that is."""
        largest = scale.gather(2, scale.abs().argmax(2, keepdim=True))
        farthest = self.limits[0] or self.limits[1]
        return self.scheme.round_scale(largest / farthest)

    def _never_zero(self, code: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
        """Codes of scales: a scale of nothing would make all weights of a group one."""
        code = code.round().clamp_(*self.limits)
        if self.scheme.minima:
            return code.clamp_min_(1)
        return torch.where(code == 0, torch.where(side * self.step < 0, -1.0, 1.0), code)

    def _nearest_low(self, minimum: torch.Tensor) -> torch.Tensor:
        code = torch.where(self.low_step == 0, 0.0, minimum / self.low_step)
        return code.round_().clamp_(*self.limits)

    def _grid(
        self,
        step: torch.Tensor,
        code: torch.Tensor,
        low_step: torch.Tensor | None,
        low_code: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point (minimum) of each group, `[rows, S, k, 1]`."""
        scale = code * step
        if low_step is None or low_code is None:
            return scale, torch.full_like(scale, self.scheme.midpoint)
        return scale, low_code * low_step

    def _codes(self, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        return nearest_codes(self.groups, scale, zero_in_codes(scale, zero, self.scheme), self.scheme)

    def _errors(
        self,
        step: torch.Tensor,
        code: torch.Tensor,
        low_step: torch.Tensor | None,
        low_code: torch.Tensor | None,
    ) -> torch.Tensor:
        scale, zero = self._grid(step, code, low_step, low_code)
        by_group = (x.flatten(1, 2) for x in (scale, zero))  # [rows, G, 1]
        error = grid_errors(self.groups.flatten(1, 2), self.importance.flatten(1, 2), self.scheme, *by_group)
        return error.view_as(code)

    def try_neighbours(self) -> None:
        """Move the codes of each group where that lowers its error."""
        present, low_step, present_low = self.code, *self._low()
        for shift, low_shift in product(_REACH, _REACH if self.scheme.minima else (0,)):
            if shift == low_shift == 0:
                continue
            code = self._never_zero(present + shift, present)
            low_code = None if present_low is None else (present_low + low_shift).clamp_(*self.limits)
            error = self._errors(self.step, code, low_step, low_code)
            better = error < self.error
            self.code = torch.where(better, code, self.code)
            if low_code is not None:
                self.low_code = torch.where(better, low_code, self.low_code)
            self.error = torch.where(better, error, self.error)

    def refit(self) -> None:
        """The best d (and e) for the present codes, where they lower the error of the super-block."""
        scale, zero = self._grid(self.step, self.code, *self._low())
        codes, h = self._codes(scale, zero), self.importance
        if self.scheme.minima:
            a = codes * self.code
            low = self.low_code.expand_as(a)
            sums = (_total(a * a, h), _total(a * low, h), _total(low * low, h))
            step, low_step = solve_pairs(*sums, _total(a * self.groups, h), _total(low * self.groups, h))
            # Where all minima are zero, or the pair makes no sense, they stay.
            sound = torch.isfinite(step) & torch.isfinite(low_step) & (step > 0) & (low_step <= 0)
            low_step = round_minima(torch.where(sound, low_step, self.low_step), self.scheme)
        else:
            a = (codes - self.scheme.midpoint) * self.code
            step, low_step = _total(a * self.groups, h) / _total(a * a, h), None
            sound = torch.isfinite(step) & (step * self.step > 0)
        step = self.scheme.round_scale(torch.where(sound, step, self.step))
        error = self._errors(step, self.code, low_step, self._low()[1])
        better = error.sum(2, keepdim=True) < self.error.sum(2, keepdim=True)
        self.step = torch.where(better, step, self.step)
        if low_step is not None:
            self.low_step = torch.where(better, low_step, self.low_step)
        self.error = torch.where(better, error, self.error)

    def result(self) -> QParams:
        """As stored."""
        scales = self._stored(self.step, self.code)
        if not self.scheme.minima:
            values = scales.values().unsqueeze(-1)
            return QParams(values, torch.full_like(values, self.scheme.midpoint), scales)
        minima = self._stored(self.low_step, self.low_code)
        return QParams(scales.values().unsqueeze(-1), minima.values().unsqueeze(-1), scales, minima)

    def _stored(self, step: torch.Tensor, code: torch.Tensor) -> SuperBlocks:
        dtype = torch.uint8 if self.scheme.minima else torch.int8
        codes = code.reshape(self.shape[0], self.shape[1]).to(dtype)
        return SuperBlocks(codes, step[:, :, 0, 0].to(self.scheme.torch_dtype), self.bits)


def _total(products: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
    """Weighted sum over each super-block, `[rows, S, 1, 1]`."""
    return (products * importance).sum((2, 3), keepdim=True)
