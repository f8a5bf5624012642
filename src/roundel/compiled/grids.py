"""Kernels for weights whose grids are not fixed yet: learned rounding, and the search for grids.

All take weights in groups, `[out, G, g]` float32 on the CPU, with scales and zero points `[out, G, 1]` as they are
stored; `kind` says what these mean. `methods.learned_rounding` and `grid.best_grid` have the same in torch's operators.
"""

from typing import Any, Protocol

import torch

from roundel.compiled.extension import EXTENSION

# As enum Number in src/kernels/matrix.h.
_NUMBERS = {torch.float32: 1, torch.bfloat16: 3}


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


def serve(groups: torch.Tensor, *, weights: torch.dtype = torch.float32) -> bool:
    """Whether there are kernels for these groups, and for rounded weights of that type."""
    return EXTENSION is not None and groups.device.type == "cpu" and weights in _NUMBERS


def round_learned(
    groups: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    offset: torch.Tensor | None,
    kind: GridKind,
    in_features: int,
    dtype: torch.dtype,
    instruction_set: str = "",
) -> torch.Tensor:
    """The weights on their grids, `[out, in]` of `dtype`, offsets `[out, G, g]` added before they are rounded."""
    to = torch.empty((groups.shape[0], in_features), dtype=dtype, device="cpu")
    kept = [groups.contiguous(), scale.contiguous(), zero.contiguous()]
    EXTENSION.round_learned(
        **_shape(groups, kind, in_features),
        weight=_at(kept[0], groups.shape),
        scale=_at(kept[1], _statistics(groups)),
        zero=_at(kept[2], _statistics(groups)),
        offset=0 if offset is None else _at(offset, groups.shape),
        type=_NUMBERS[dtype],
        to=to.data_ptr(),
        threads=torch.get_num_threads(),
        instruction_set=instruction_set,
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
    of_ranges = (_statistic(groups), _statistic(groups)) if ranges else None
    kept = [groups.contiguous(), scale.contiguous(), zero.contiguous(), gradient.contiguous()]
    EXTENSION.descend(
        **_shape(groups, kind, gradient.shape[1]),
        weight=_at(kept[0], groups.shape),
        scale=_at(kept[1], _statistics(groups)),
        zero=_at(kept[2], _statistics(groups)),
        offset=_at(offset, groups.shape),
        type=_NUMBERS[gradient.dtype],
        gradient=kept[3].data_ptr(),
        step=step,
        grad_scale=0 if of_ranges is None else of_ranges[0].data_ptr(),
        grad_zero=0 if of_ranges is None else of_ranges[1].data_ptr(),
        threads=torch.get_num_threads(),
        instruction_set=instruction_set,
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
    choice = torch.full(error.shape, -1, dtype=torch.int32, device="cpu")
    kept = [x.contiguous() for x in (groups, importance, scales, zeros)]
    statistics = (len(scales), *_statistics(groups))
    EXTENSION.choose_grids(
        **_shape(groups, kind, groups.shape[1] * groups.shape[2]),
        weight=_at(kept[0], groups.shape),
        importance=_at(kept[1], (1, *groups.shape[1:])),
        count=len(scales),
        scales=_at(kept[2], statistics),
        zeros=_at(kept[3], statistics),
        choice=choice.data_ptr(),
        error=_at(error, _statistics(groups)),
        threads=torch.get_num_threads(),
        instruction_set=instruction_set,
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
    sums = (_statistic(groups), _statistic(groups), _statistic(groups))
    kept = [x.contiguous() for x in (groups, importance, scale, zero)]
    EXTENSION.sum_codes(
        **_shape(groups, kind, groups.shape[1] * groups.shape[2]),
        weight=_at(kept[0], groups.shape),
        importance=_at(kept[1], (1, *groups.shape[1:])),
        scale=_at(kept[2], _statistics(groups)),
        zero=_at(kept[3], _statistics(groups)),
        codes=sums[0].data_ptr(),
        squares=sums[1].data_ptr(),
        products=sums[2].data_ptr(),
        threads=torch.get_num_threads(),
        instruction_set=instruction_set,
    )
    return sums


def _shape(groups: torch.Tensor, kind: GridKind, columns: int) -> dict[str, Any]:
    rows, count, width = groups.shape
    return {
        "shape": EXTENSION.Groups(rows=rows, columns=columns, groups=count, group=width),
        "kind": EXTENSION.GridKind(levels=kind.levels, round_zero=kind.round_zero, minima=kind.minima),
    }


def _statistics(groups: torch.Tensor) -> tuple[int, ...]:
    return (*groups.shape[:2], 1)


def _statistic(groups: torch.Tensor) -> torch.Tensor:
    return torch.empty(_statistics(groups), dtype=torch.float32, device="cpu")


def _at(tensor: torch.Tensor, shape: tuple[int, ...]) -> int:
    """The address of what a kernel reads as float32 of that shape: nothing stops it at the end of what is there."""
    if tuple(tensor.shape) != tuple(shape) or tensor.dtype is not torch.float32 or not tensor.is_contiguous():
        raise ValueError(
            f"contiguous float32 of shape {list(shape)} is expected, and {list(tensor.shape)} {tensor.dtype} is given"
        )
    return tensor.data_ptr()
