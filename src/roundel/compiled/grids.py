"""Kernels for weights whose grids are not fixed yet: learned rounding, and the search for grids.

All take weights in groups, `[out, G, g]` float32 on the CPU, with scales and zero points `[out, G, 1]` as they are
stored; `kind` says what these mean. `methods.learned_rounding` and `grid.best_grid` have the same in torch's operators.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from roundel.compiled.extension import EXTENSION, NUMBERS, address

# Types of rounded weights, and of their gradients.
_ROUNDED = (torch.float32, torch.bfloat16)


class GridKind(Protocol):
    """How codes and weights belong together; a `Scheme` is one."""

    @property
    def levels(self) -> int:
        """The largest code."""
        ...

    @property
    def round_zero(self) -> bool:
        """Zero points are integers."""
        ...

    @property
    def minima(self) -> bool:
        """What is stored as zero points are the weights of code 0."""
        ...


@dataclass(frozen=True)
class GridTries:
    """What a search for grids tries.

    Attributes:
        dtype: in which scales are stored.
        shares: lengths of ranges, as shares of the start's.
        factors: of the best scale so far: its neighbours.
        zeros: ranges have two ends, of any two shares, and zero points have neighbours; else sizes are tried.
        rounds: of neighbours, and of scales that are best for the codes.
    """

    dtype: torch.dtype
    shares: tuple[float, ...]
    factors: tuple[float, ...]
    zeros: bool
    rounds: int


def serve(groups: torch.Tensor, *, weights: torch.dtype = torch.float32) -> bool:
    """Whether there are kernels for these groups, and for rounded weights of that type."""
    return EXTENSION is not None and groups.device.type == "cpu" and weights in _ROUNDED


def round_learned(
    groups: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    offset: torch.Tensor,
    kind: GridKind,
    in_features: int,
    dtype: torch.dtype,
    instruction_set: str = "",
) -> torch.Tensor:
    """The weights on their grids, `[out, in]` of `dtype`, offsets `[out, G, g]` added before they are rounded."""
    weights = _Weights(groups, kind, in_features)
    to = torch.empty((groups.shape[0], in_features), dtype=dtype, device="cpu")
    weights.call(
        "round_learned",
        instruction_set,
        scale=weights.statistic(scale),
        zero=weights.statistic(zero),
        offset=weights.present(offset, groups.shape),
        type=NUMBERS[dtype],
        to=to.data_ptr(),
    )
    return to


def descend(
    groups: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    offset: torch.Tensor,
    kind: GridKind,
    gradient: torch.Tensor,
    step: float,
    *,
    ranges: bool,
    instruction_set: str = "",
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Move the offsets by `step` against the signs of their gradients, in place.

    Args:
        gradient: of the rounded weights, `[out, in]` float32 or bfloat16.
        ranges: return the gradients of scale and zero point, `[out, G, 1]`.
    """
    weights = _Weights(groups, kind, gradient.shape[1])
    of_ranges = (weights.new_statistic(), weights.new_statistic()) if ranges else None
    gradient = gradient.contiguous()
    weights.call(
        "descend",
        instruction_set,
        scale=weights.statistic(scale),
        zero=weights.statistic(zero),
        offset=weights.present(offset, groups.shape),
        type=NUMBERS[gradient.dtype],
        gradient=gradient.data_ptr(),
        step=step,
        grad_scale=0 if of_ranges is None else of_ranges[0].data_ptr(),
        grad_zero=0 if of_ranges is None else of_ranges[1].data_ptr(),
    )
    return of_ranges


def choose_grids(
    groups: torch.Tensor,
    importance: torch.Tensor,
    kind: GridKind,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    error: torch.Tensor,
    instruction_set: str = "",
) -> torch.Tensor:
    """Which of several grids rounds every group best.

    Args:
        importance: of the weights, `[1, G, g]`.
        scales, zeros: `[C, out, G, 1]`.
        error: `[out, G, 1]`: of what is there already; in place, what is found.

    Returns:
        `[out, G, 1]` int32: the number of the first of the best; -1: none has less error than what is there.
    """
    weights = _Weights(groups, kind, importance=importance)
    choice = torch.full(error.shape, -1, dtype=torch.int32, device="cpu")
    weights.call(
        "choose_grids",
        instruction_set,
        count=len(scales),
        scales=weights.statistic(scales, len(scales)),
        zeros=weights.statistic(zeros, len(scales)),
        choice=choice.data_ptr(),
        error=weights.present(error, weights.statistics),
    )
    return choice


def sum_codes(
    groups: torch.Tensor,
    importance: torch.Tensor,
    kind: GridKind,
    scale: torch.Tensor,
    zero: torch.Tensor,
    instruction_set: str = "",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums over the nearest codes of each group, `[out, G, 1]` each: of h a, h a^2 and h a w.

    a is the distance of the code from the zero point, or the code where there are minima, h the importance `[1, G, g]`.
    """
    weights = _Weights(groups, kind, importance=importance)
    sums = (weights.new_statistic(), weights.new_statistic(), weights.new_statistic())
    weights.call(
        "sum_codes",
        instruction_set,
        scale=weights.statistic(scale),
        zero=weights.statistic(zero),
        codes=sums[0].data_ptr(),
        squares=sums[1].data_ptr(),
        products=sums[2].data_ptr(),
    )
    return sums


def search_grids(
    groups: torch.Tensor,
    importance: torch.Tensor,
    kind: GridKind,
    scale: torch.Tensor,
    zero: torch.Tensor,
    tries: GridTries,
    instruction_set: str = "",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The searched grid of every group: scale and zero point, `[out, G, 1]` each.

    Args:
        importance: of the weights, `[1, G, g]`.
        scale, zero: the start.
        tries: what is tried.
    """
    weights = _Weights(groups, kind, importance=importance)
    found = (scale.clone(), zero.clone())
    weights.call(
        "search_grids",
        instruction_set,
        type=NUMBERS[tries.dtype],
        shares=list(tries.shares),
        factors=list(tries.factors),
        zeros=tries.zeros,
        rounds=tries.rounds,
        scale=weights.present(found[0], weights.statistics),
        zero=weights.present(found[1], weights.statistics),
    )
    return found


class _Weights:
    """Weights in groups as the kernels know them; it keeps the tensors that they read.

    They take addresses, and nothing stops them at the end of what is there: shapes and types are checked here.

    Args:
        groups: `[out, G, g]`.
        kind: how codes and weights belong together.
        columns: of a row, without the padding of its last group; None: padding counts as well.
        importance: `[1, G, g]`, where the kernel asks for it.
    """

    def __init__(
        self,
        groups: torch.Tensor,
        kind: GridKind,
        columns: int | None = None,
        importance: torch.Tensor | None = None,
    ) -> None:
        self._kept: list[torch.Tensor] = []
        rows, count, width = groups.shape
        self.statistics = (rows, count, 1)
        self._weights = EXTENSION.Weights(
            rows=rows,
            columns=count * width if columns is None else columns,
            groups=count,
            group=width,
            levels=kind.levels,
            round_zero=kind.round_zero,
            minima=kind.minima,
            weight=self._read(groups, groups.shape),
            importance=0 if importance is None else self._read(importance, (1, count, width)),
        )

    def call(self, kernel: str, instruction_set: str, **arguments: Any) -> None:
        """Run a kernel, on as many threads as torch has."""
        getattr(self._weights, kernel)(
            **arguments, threads=torch.get_num_threads(), instruction_set=instruction_set
        )

    def statistic(self, values: torch.Tensor, count: int | None = None) -> int:
        """The address of one number for each group, or of so many."""
        return self._read(values, self.statistics if count is None else (count, *self.statistics))

    def new_statistic(self) -> torch.Tensor:
        """To be written."""
        return torch.empty(self.statistics, dtype=torch.float32, device="cpu")

    def present(self, tensor: torch.Tensor, shape: tuple[int, ...]) -> int:
        """The address of what a kernel writes to.

        Raises:
            ValueError: it is no contiguous float32 of that shape.
        """
        return address(tensor, shape, torch.float32)

    def _read(self, tensor: torch.Tensor, shape: tuple[int, ...]) -> int:
        self._kept.append(tensor.contiguous())
        return self.present(self._kept[-1], shape)
