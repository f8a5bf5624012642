"""The kernel of rounding with error feedback; `methods.columns` has the same in torch's operators."""

from dataclasses import dataclass

import torch

from roundel.compiled.extension import EXTENSION, address
from roundel.compiled.grids import GridKind

# That the kernel takes at once.
MOST_COLUMNS: int = 0 if EXTENSION is None else EXTENSION.most_columns


@dataclass(frozen=True)
class Columns:
    """A weight while its columns are rounded; `[in, out]`, a column contiguous, in the order of rounding.

    Attributes:
        original: fp32, the weight.
        update: `[in, in]` fp32; `update[k, i]` times the error of column i < k is added to column k.
        scale, zero: `[groups, out]` fp32, as stored; those of a group count from when its first column is rounded.
        group_of: `[in]` int64.
        mask: bool, weights that are kept as outliers; None: none.
        present: fp32; what columns are rounded from, and what others hold on their way there.
        error: fp32, `original` without what it was rounded to.
        codes: uint8.
        residual: fp16, what outliers have beside their codes, and zeros; None where there is no mask.
    """

    original: torch.Tensor
    update: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    group_of: torch.Tensor
    mask: torch.Tensor | None
    present: torch.Tensor
    error: torch.Tensor
    codes: torch.Tensor
    residual: torch.Tensor | None

    def __post_init__(self) -> None:
        """See that matrices are what kernels take them to be: these have addresses only.

        Raises:
            ValueError: they are not.
        """
        width, out = self.original.shape
        whole, groups = (width, out), (len(self.scale), out)
        for tensor, shape, dtype in (
            (self.original, whole, torch.float32),
            (self.update, (width, width), torch.float32),
            (self.scale, groups, torch.float32),
            (self.zero, groups, torch.float32),
            (self.group_of, (width,), torch.int64),
            (self.mask, whole, torch.bool),
            (self.present, whole, torch.float32),
            (self.error, whole, torch.float32),
            (self.codes, whole, torch.uint8),
            (self.residual, whole, torch.float16),
        ):
            if tensor is not None:
                address(tensor, shape, dtype)
        if not 0 <= int(self.group_of.min()) <= int(self.group_of.max()) < len(self.scale):
            raise ValueError("groups are numbered beyond their scales")


def serve(columns: Columns) -> bool:
    """Whether there is a kernel for them."""
    return EXTENSION is not None and columns.original.device.type == "cpu"


def round_columns(columns: Columns, kind: GridKind, first: int, last: int, instruction_set: str = "") -> None:
    """Round columns `[first, last)`, at most MOST_COLUMNS, each with what those before it among them missed."""
    width, out = columns.original.shape
    if not 0 <= first <= last <= width:
        raise ValueError(f"columns {first} to {last} of {width}")
    EXTENSION.round_columns(
        first=first,
        last=last,
        columns=width,
        rows=out,
        levels=kind.levels,
        round_zero=kind.round_zero,
        minima=kind.minima,
        original=columns.original.data_ptr(),
        update=columns.update.data_ptr(),
        scale=columns.scale.data_ptr(),
        zero=columns.zero.data_ptr(),
        group=columns.group_of.data_ptr(),
        mask=0 if columns.mask is None else columns.mask.data_ptr(),
        present=columns.present.data_ptr(),
        error=columns.error.data_ptr(),
        codes=columns.codes.data_ptr(),
        residual=0 if columns.residual is None else columns.residual.data_ptr(),
        threads=torch.get_num_threads(),
        instruction_set=instruction_set,
    )
