"""GPTQ: round column by column, and let the columns to come make up for the error (arXiv 2210.17323).

With H = R R^T (cholesky.py), the squared output error of rounding W to W^ is |(W^ - W) R|^2. R is upper triangular, so
column k of that product knows columns up to k only, and is smallest if column k is rounded not from w_k but from

    w~_k = w_k + sum_{i<k} (w_i - w^_i) R_ik / R_kk.

This is the paper's update with U = R^-1, written without an inverse. Each row is a problem of its own.

The sum is a triangular product, computed by halves: round the left half of the columns, add its share to the
right half in one matrix product, round the right half. Down to the few columns that columns.py rounds at once all
arithmetic is matrix products of the largest possible size; a plain loop of rank-one updates moves the whole matrix
through memory once per column, and the paper's blocks of 128 columns stop half-way.

Dead columns (inputs that were always zero) come out rounded to nearest: the reference sets them to zero, but
silence on the calibration data is no proof.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from roundel.compiled.columns import Columns
from roundel.grid.affine import QParams, join_starts
from roundel.grid.outliers import Outliers
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.methods.cholesky import Factor, SharedFactor
from roundel.methods.columns import most_columns, round_columns
from roundel.methods.options import HessianOptions
from roundel.methods.order import column_order
from roundel.methods.rtn import make_start

# Columns of a piece where grids are fitted beforehand, so that groups cut nothing.
_PIECE = 64

OnGroup = Callable[[int, int, torch.Tensor, QParams], None]
"""Told of every group when its grid is fitted: first and last + 1 position, weights `[g, out]`, grid."""


@dataclass(frozen=True)
class Rounded:
    """A weight after error feedback.

    Attributes:
        weight: the integers.
        start: the grid, with groups as stored.
        damping: what the factorization took.
        present: `[in, out]` fp32, what each column was rounded from, in the order of rounding.
        positions: `[in]`, of the input channels in that order.
    """

    weight: QuantizedWeight
    start: QParams
    damping: float
    present: torch.Tensor
    positions: torch.Tensor

    @property
    def compensated(self) -> torch.Tensor:
        """`[out, in]` fp32, what each weight was rounded from; tuning starts there."""
        return _by_channel(self.present, self.positions)


def gptq(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    scheme: Scheme,
    options: HessianOptions,
    kind: str,
    shared: SharedFactor | None = None,
) -> Rounded:
    """Round a weight with error feedback.

    Args:
        weight: `[out, in]` fp32, finite.
        hessian: `[in, in]` fp32, second moments of the inputs.
        scheme: which grid, two-level ones included.
        options: damping, order, static_groups.
        kind: how grids are fitted, `minmax` or `search`.
        shared: the same for all weights that are rounded by this Hessian.

    Raises:
        NonFiniteError: the Hessian cannot be factorized.
    """
    return ErrorFeedback(weight, hessian, scheme, options, kind, shared).round()


class ErrorFeedback:
    """The loop over the columns of one weight, with its factor; it may run more than once.

    Positions count columns in the order of rounding.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        hessian: torch.Tensor,
        scheme: Scheme,
        options: HessianOptions,
        kind: str,
        shared: SharedFactor | None = None,
    ) -> None:
        self.weight, self.scheme, self.kind = weight, scheme, kind
        self.diagonal = hessian.diagonal()
        self.layout = Layout(weight, self.diagonal, scheme, options)
        order = self.layout.order
        self.factor: Factor = (shared or SharedFactor()).of(hessian, order, options.damping)
        self.importance = self.factor.importance  # [in], by position
        self.original = weight.t().contiguous().index_select(0, order)  # [in, out]
        self.start = self.fit_before()

    def round(self, mask: torch.Tensor | None = None) -> Rounded:
        """The weight rounded in one pass; `mask [in, out]` by position: weights that are kept as outliers."""
        return self._run(mask).result()

    def watch(self, on_group: OnGroup) -> None:
        """One pass over all columns of which nothing is kept: `on_group` is given every group."""
        self._run(on_group=on_group)

    def _run(self, mask: torch.Tensor | None = None, on_group: OnGroup | None = None) -> "_Pass":
        run = _Pass(self, mask, on_group)
        run.pieces(0, len(self.layout.pieces))
        return run

    def fit_before(self, mask: torch.Tensor | None = None) -> QParams | None:
        """All grids at once, on the weights as they are without those in `mask`, where the layout wants that.

        Nothing is compensated yet, so the inputs' own second moments are the importance.
        """
        if not self.layout.fitted_before:
            return None
        columns = self.weight.t()
        if mask is not None:
            # Groups are groups of the original channels here.
            width = self.scheme.width(len(columns))
            by_channel = mask[self.layout.order.argsort()]
            pairs = zip(columns.split(width), by_channel.split(width), strict=True)
            columns = torch.cat([without(group, left_out) for group, left_out in pairs])
        return make_start(columns.t(), self.scheme, self.kind, self.diagonal)

    def fit(self, columns: torch.Tensor, importance: torch.Tensor) -> QParams:
        """The grid of one group from `columns [g, out]` and `importance [g]`."""
        return make_start(columns.t(), self.scheme, self.kind, importance)


class Layout:
    """Which column is rounded when, and where its group is stored.

    Attributes:
        order: `[in]`, the input channel at each position.
        permuted: whether codes are stored in that order.
        places: `[in]`, where the column at each position is stored.
        fitted_before: whether all grids are fitted before the first column is rounded.
        pieces: positions `[first, last)` that the loop takes one after the other; where grids are fitted on the
            way, a piece is a group, or the groups of a super-block.
        group_of: `[in]`, the stored group of each position.
    """

    def __init__(
        self, weight: torch.Tensor, diagonal: torch.Tensor, scheme: Scheme, options: HessianOptions
    ) -> None:
        width = weight.shape[1]
        together = scheme.fit_width(width)
        order = column_order(options.order, weight, diagonal, together)
        self.order = torch.arange(width, device=weight.device) if order is None else order
        self.fitted_before = options.static_groups or together == width
        self.permuted = options.order in ("act_order", "spearman") and not self.fitted_before
        self.places = torch.arange(width, device=weight.device) if self.permuted else self.order
        self.group_of = self.places // scheme.width(width)
        if self.fitted_before:
            cuts = [*range(0, width, _PIECE), width]
        else:
            units = (self.places // together).tolist()
            cuts = [0, *(k for k in range(1, width) if units[k] != units[k - 1]), width]
        self.pieces = list(pairwise(cuts))


class _Pass:
    """One run over the columns."""

    def __init__(self, loop: ErrorFeedback, mask: torch.Tensor | None, on_group: OnGroup | None) -> None:
        self.loop, self.scheme, self.layout = loop, loop.scheme, loop.layout
        self.on_group = on_group
        original, group_of = loop.original, loop.layout.group_of
        grids = (int(group_of.max()) + 1, original.shape[1])
        self.columns = Columns(
            original=original,
            update=loop.factor.update,
            scale=original.new_empty(grids),
            zero=original.new_empty(grids),
            group_of=group_of,
            mask=mask,
            present=original.clone(),
            error=torch.empty_like(original),
            codes=torch.empty_like(original, dtype=torch.uint8),
            residual=None if mask is None else torch.zeros_like(original, dtype=torch.float16),
        )
        self.starts: dict[int, QParams] = {}
        self.start = loop.start if mask is None else loop.fit_before(mask)
        if self.start is not None:
            self._take_grids(0, self.start)

    def _take_grids(self, first: int, start: QParams) -> None:
        groups = slice(first, first + start.scale.shape[1])
        self.columns.scale[groups] = start.scale[..., 0].t()
        self.columns.zero[groups] = start.stored_zero(self.scheme)[..., 0].t()

    def pieces(self, first: int, last: int) -> None:
        """Round pieces `[first, last)`, by halves."""
        if last - first == 1:
            begin, end = self.layout.pieces[first]
            if not self.layout.fitted_before:
                self._fit(begin, end)
            self._round(begin, end)
            return
        middle = (first + last) // 2
        self.pieces(first, middle)
        self._feed_back(
            self.layout.pieces[first][0], self.layout.pieces[middle][0], self.layout.pieces[last - 1][1]
        )
        self.pieces(middle, last)

    def _round(self, first: int, last: int) -> None:
        if last - first <= most_columns(self.columns):
            round_columns(self.columns, self.scheme, first, last)
            return
        middle = (first + last) // 2
        self._round(first, middle)
        self._feed_back(first, middle, last)
        self._round(middle, last)

    def _feed_back(self, first: int, middle: int, last: int) -> None:
        """Positions `[first, middle)` are rounded: add their share to `[middle, last)`."""
        update = self.columns.update[middle:last, first:middle]
        self.columns.present[middle:last].addmm_(update, self.columns.error[first:middle])

    def _fit(self, first: int, last: int) -> None:
        columns = self._expected(first, last)
        if self.columns.mask is not None:
            columns = without(columns, self.columns.mask[first:last])
        importance = self.loop.importance[first:last]
        if last - first > self.scheme.width(len(self.layout.places)):
            # Groups of a super-block are cut from columns as they are stored.
            stored = self.layout.places[first:last].argsort()
            start = self.loop.fit(columns.index_select(0, stored), importance[stored])
        else:
            start = self.loop.fit(columns, importance)
        group = int(self.layout.group_of[first:last].min())
        self.starts[group] = start
        self._take_grids(group, start)
        if self.on_group is not None:
            self.on_group(first, last, columns, start)

    def _expected(self, first: int, last: int) -> torch.Tensor:
        """The weights `[g, out]` that a group's columns will be rounded from, were its own rounding exact.

        What they hold so far makes up for earlier columns one by one. Together they would make up for them with
        (w~ - w) U_gg = (sum so far), U = R with a diagonal of ones, which is what the paper's update leaves in them.
        """
        update = self.columns.update[first:last, first:last]
        original = self.columns.original[first:last]
        wanted = self.columns.present[first:last] - original
        # Transposed, so that rows of the weight stay contiguous.
        missing = torch.linalg.solve_triangular(
            update.t(), wanted.t(), upper=True, left=False, unitriangular=True
        )
        return missing.t().add_(original)

    def result(self) -> Rounded:
        """What was made of the weight."""
        start = self.start or join_starts([self.starts[g] for g in sorted(self.starts)])
        positions = self.layout.order.argsort()
        order = None if self.layout.permuted else positions
        outliers = None
        mask, residual = self.columns.mask, self.columns.residual
        if mask is not None and residual is not None and bool(mask.any()):
            outliers = Outliers.where(_by_channel(mask, order), _by_channel(residual, order))
        weight = QuantizedWeight(
            _by_channel(self.columns.codes, order),
            start.stored_scale(self.scheme),
            start.stored_zero_points(self.scheme),
            self.scheme,
            outliers,
            self.layout.order if self.layout.permuted else None,
        )
        return Rounded(weight, start, self.loop.factor.damping, self.columns.present, positions)


def _by_channel(columns: torch.Tensor, order: torch.Tensor | None) -> torch.Tensor:
    """`[in, out]` by position to `[out, in]`: by input channel, or (None) as stored."""
    return (columns if order is None else columns.index_select(0, order)).t().contiguous()


def without(columns: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`columns [g, out]` with those in `mask` replaced by the mean of their group's rest, if there is one."""
    count = len(columns) - mask.sum(0)
    mean = columns.masked_fill(mask, 0).sum(0) / count.clamp_min(1)
    return torch.where(mask & (count > 0), mean, columns)
