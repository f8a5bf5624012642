"""Kernels for groups whose scales and real zero points lie on a second level, as SpQR has them, of 16, 32, ... rows.

`grid.joint` and `methods.leave_one_out` have the same in torch's operators, for all other grids too.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from roundel.compiled.extension import EXTENSION, NUMBERS, address

_LANES: int = 1 if EXTENSION is None else EXTENSION.lanes


class TwoLevelKind(Protocol):
    """What grids are wanted; a `Scheme` is one."""

    @property
    def levels(self) -> int:
        """The largest code."""
        ...

    @property
    def scale_bits(self) -> int | None:
        """Of a scale's code; None: it has none."""
        ...

    @property
    def zero_bits(self) -> int | None:
        """Of a zero point's code."""
        ...

    @property
    def zero_sym(self) -> bool:
        """Zero points lie symmetric about the middle of the codes."""
        ...

    @property
    def tile_rows(self) -> int:
        """Rows that share a second level."""
        ...

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of its steps and offsets."""
        ...


@dataclass(frozen=True)
class TwoLevelTries:
    """What a fit tries, and where a range is none.

    Attributes:
        scale_reach, zero_reach: codes to either side of the nearest.
        zero_ranges: ranges of a tile's zero points, as shares of the whole one.
        least_share: the least scale, as a share of the largest of its tile.
        small: the scale of nothing but zeros.
        point: ranges this much smaller than their place are a point.
        least_step: of a second level, as a share of its largest value.
    """

    scale_reach: int
    zero_reach: int
    zero_ranges: tuple[float, ...]
    least_share: float
    small: float
    point: float
    least_step: float


@dataclass(frozen=True)
class FittedStatistic:
    """Scales or zero points of a group: `values [out]` fp32 are `step * (code - offset)`.

    Attributes:
        codes: `[out, 1]` uint8.
        step, offset: `[tiles, 1]`, in the type in which they are stored.
    """

    values: torch.Tensor
    codes: torch.Tensor
    step: torch.Tensor
    offset: torch.Tensor


def serve(columns: torch.Tensor, kind: TwoLevelKind) -> bool:
    """Whether there is a kernel for such grids of these columns."""
    both = kind.scale_bits is not None and kind.zero_bits is not None
    return EXTENSION is not None and columns.device.type == "cpu" and both and kind.tile_rows % _LANES == 0


def fit(
    columns: torch.Tensor,
    importance: torch.Tensor,
    kind: TwoLevelKind,
    tries: TwoLevelTries,
    instruction_set: str = "",
) -> tuple[FittedStatistic, FittedStatistic]:
    """Scales and zero points of one group.

    Args:
        columns: `[g, out]` fp32, contiguous.
        importance: `[g]` fp32.
        kind: which grids.
        tries: how they are looked for.
        instruction_set: by name; the best that there is.

    Raises:
        ValueError: what is given is not of that form.
    """
    out = columns.shape[1]
    tiles = -(-out // kind.tile_rows)
    found = _Statistics(out, tiles), _Statistics(out, tiles)
    _Fit(columns, importance, kind, tries).call(
        "fit",
        instruction_set,
        scale=found[0].values.data_ptr(),
        scale_codes=found[0].codes.data_ptr(),
        scale_step=found[0].step.data_ptr(),
        scale_offset=found[0].offset.data_ptr(),
        zero=found[1].values.data_ptr(),
        zero_codes=found[1].codes.data_ptr(),
        zero_step=found[1].step.data_ptr(),
        zero_offset=found[1].offset.data_ptr(),
    )
    return found[0].stored(kind.torch_dtype), found[1].stored(kind.torch_dtype)


def leave_one_out(
    columns: torch.Tensor,
    importance: torch.Tensor,
    kind: TwoLevelKind,
    tries: TwoLevelTries,
    errors: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    instruction_set: str = "",
) -> torch.Tensor:
    """What leaving out each weight of a group saves, `[g, out]`.

    Args:
        columns, importance, kind, tries: as for `fit`.
        errors: `[g]` fp32, by which squared errors are weighted.
        scale, zero: `[out]` fp32, the grids of the whole group.

    Raises:
        ValueError: what is given is not of that form, or a group has fewer than three columns.
    """
    width, out = columns.shape
    if width < 3:
        raise ValueError(f"a group of {width} columns has no rest to speak of")
    saved = torch.empty_like(columns)
    _Fit(columns, importance, kind, tries).call(
        "leave_one_out",
        instruction_set,
        importance=address(errors, (width,), torch.float32),
        scale=address(scale, (out,), torch.float32),
        zero=address(zero, (out,), torch.float32),
        saved=saved.data_ptr(),
    )
    return saved


class _Statistics:
    """Room for what a fit finds of one statistic."""

    def __init__(self, out: int, tiles: int) -> None:
        self.values = torch.empty(out, dtype=torch.float32, device="cpu")
        self.codes = torch.empty((out, 1), dtype=torch.uint8, device="cpu")
        self.step = torch.empty((tiles, 1), dtype=torch.float32, device="cpu")
        self.offset = torch.empty_like(self.step)

    def stored(self, dtype: torch.dtype) -> FittedStatistic:
        return FittedStatistic(self.values, self.codes, self.step.to(dtype), self.offset.to(dtype))


class _Fit:
    """What the kernel reads."""

    def __init__(
        self, columns: torch.Tensor, importance: torch.Tensor, kind: TwoLevelKind, tries: TwoLevelTries
    ) -> None:
        width, out = columns.shape
        self.ranges = torch.tensor(tries.zero_ranges, dtype=torch.float32, device="cpu")
        self.kept = columns, importance, self.ranges  # until the call: the kernel has their addresses only
        self.fit: Any = EXTENSION.TwoLevelFit(
            columns=width,
            rows=out,
            tile_rows=kind.tile_rows,
            weight=address(columns, (width, out), torch.float32),
            importance=address(importance, (width,), torch.float32),
            levels=kind.levels,
            scale_top=2 ** (kind.scale_bits or 0) - 1,
            zero_top=2 ** (kind.zero_bits or 0) - 1,
            zero_symmetric=kind.zero_sym,
            type=NUMBERS[kind.torch_dtype],
            scale_reach=tries.scale_reach,
            zero_reach=tries.zero_reach,
            zero_ranges=self.ranges.data_ptr(),
            zero_range_count=len(tries.zero_ranges),
            least_share=tries.least_share,
            small=tries.small,
            point=tries.point,
            least_step=tries.least_step,
        )

    def call(self, name: str, instruction_set: str, **arguments: int) -> None:
        getattr(self.fit, name)(threads=torch.get_num_threads(), instruction_set=instruction_set, **arguments)
