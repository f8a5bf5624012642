"""Which grid: the few numbers that fix how a weight is turned into integers.

One affine grid per row and group of `group_size` neighbouring input channels:

    W^ = scale * (code - zero),   code in [0, 2^bits - 1]

Symmetric grids are the same with `zero` fixed at 2^(bits-1), so that one rule dequantizes everything.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

ScaleDtype = Literal["float16", "bfloat16", "float32"]
TORCH_DTYPES: dict[str, torch.dtype] = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}


class Scheme(BaseModel):
    """The grid of one Linear. Immutable; also the part of a recipe that may differ from layer to layer."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    bits: int = Field(default=4, ge=2, le=8)
    """Bits of one code, 2 to 8."""

    group_size: int = 128
    """Input channels that share a scale; -1 = the whole row (per output channel)."""

    sym: bool = False
    """Symmetric grid: no stored zero point."""

    sym_range: Literal["full", "classic"] = "full"
    """Symmetric only. full: the signed extreme lands exactly on code 0, so a scale may be negative.
    classic: scale = max|W| / (2^(bits-1) - 0.5), never negative, as older kernels expect."""

    scale_dtype: ScaleDtype = "float16"
    """Type in which scales are stored, and to which they are rounded inside every computation."""

    @field_validator("group_size")
    @classmethod
    def _group_size(cls, value: int) -> int:
        if value != -1 and value < 1:
            raise ValueError("must be a positive number of input channels, or -1 for the whole row")
        return value

    @property
    def torch_dtype(self) -> torch.dtype:
        """`scale_dtype` as torch names it."""
        return TORCH_DTYPES[self.scale_dtype]

    @property
    def levels(self) -> int:
        """n = 2^bits - 1, the largest code."""
        return 2**self.bits - 1

    @property
    def midpoint(self) -> int:
        """2^(bits-1), the zero point of a symmetric grid."""
        return 2 ** (self.bits - 1)

    def width(self, in_features: int) -> int:
        """The real group width for a row of `in_features` weights."""
        return in_features if self.group_size == -1 else min(self.group_size, in_features)

    def groups(self, in_features: int) -> int:
        """Groups per row; the last one may be shorter."""
        return -(-in_features // self.width(in_features))

    def round_scale(self, scale: torch.Tensor) -> torch.Tensor:
        """Round fp32 scales to the storage type, keeping their sign and keeping them non-zero.

        The floor is the smallest value that the type can tell from zero. A higher floor (the references
        use 1e-5 in fp16) turns groups of very small weights into zeros; a coarsely stored small scale is
        still the better grid.
        """
        dtype = self.torch_dtype
        info = torch.finfo(dtype)
        floor = 2.0**-24 if dtype is torch.float16 else info.tiny
        sign = torch.where(scale < 0, -1.0, 1.0)
        size = scale.abs().clamp(floor, info.max)
        return (sign * size).to(dtype).float()
