"""Which grid: the few numbers that fix how a weight is turned into integers.

One affine grid per row and group of `group_size` neighbouring input channels:

    W^ = scale * (code - zero),   code in [0, 2^bits - 1]

Symmetric grids are the same with `zero` fixed at 2^(bits-1), so that one rule dequantizes everything. Scales
and zero points may lie on a second grid of their own (two_level.py), and zero points may be real numbers. The types
of GGUF files (block_types.py) are grids as well; some of them store the value of code 0 in place of a zero point.

A recipe is one, and the command line shows recipes in an instant: torch is imported where tensors are rounded.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from roundel.grid.block_types import BLOCK_TYPES, BlockType, BlockTypeName, fitting
from roundel.grid.words import packed_words

if TYPE_CHECKING:
    import torch

ScaleDtype = Literal["float16", "bfloat16", "float32"]
_TYPE_BITS: dict[ScaleDtype, int] = {"float16": 16, "bfloat16": 16, "float32": 32}


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

    round_zero: bool = True
    """Asymmetric only. Zero points are integers, one of the codes; off: real numbers, so that a group's range
    need not contain zero."""

    scale_bits: int | None = Field(default=None, ge=2, le=8)
    """Second level: scales are stored as codes of so many bits, on a grid of their own per tile. Left out:
    in `scale_dtype`."""

    zero_bits: int | None = Field(default=None, ge=2, le=8)
    """Second level of zero points, which must be real (round_zero off). Left out: in `scale_dtype`."""

    zero_sym: bool = False
    """The second level of zero points lies symmetric about the middle of the codes."""

    tile_rows: int = Field(default=16, ge=1, le=65536)
    """Rows of a tile: so many scales (zero points) of one column group share second-level statistics."""

    type: BlockTypeName | None = None
    """A type of GGUF files (q4_0, q4_k, ...), which fixes all the rest of the grid. Rows that are no multiple of its
    block get the type that llama.cpp falls back on."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_type(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or data.get("type") not in BLOCK_TYPES:
            return data  # refused where it is a wrong value
        fixed = type_settings(data["type"])
        differing = sorted(key for key in fixed if key in data and data[key] not in (fixed[key], "auto"))
        if differing:
            raise ValueError(
                f"type {data['type']} fixes {', '.join(fixed)}: leave {', '.join(differing)} out, or the type"
            )
        return {**data, **fixed}

    @field_validator("group_size")
    @classmethod
    def _group_size(cls, value: int) -> int:
        if value != -1 and value < 1:
            raise ValueError("must be a positive number of input channels, or -1 for the whole row")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.zero_bits is not None and (self.sym or self.round_zero):
            raise ValueError("zero_bits wants real zero points: set sym=false and round_zero=false")
        if self.sym and not self.round_zero:
            raise ValueError("a symmetric grid has no zero points to be real: leave round_zero out")
        if self.sym and self.scale_bits is not None and self.sym_range == "full":
            raise ValueError(
                "scale_bits wants positive scales, which a full-range symmetric grid has not: set sym_range=classic"
            )
        if self.zero_sym and self.zero_bits is None:
            raise ValueError("zero_sym has no effect without zero_bits")
        return self

    @property
    def two_level(self) -> bool:
        """Whether scales or zero points have a grid of their own, in tiles of rows."""
        return self.scale_bits is not None or self.zero_bits is not None

    @property
    def block_type(self) -> BlockType | None:
        """What `type` says."""
        return None if self.type is None else BLOCK_TYPES[self.type]

    @property
    def minima(self) -> bool:
        """Whether the stored zero points are the values of code 0: W^ = scale * code + minimum."""
        return self.block_type is not None and self.block_type.minima

    @property
    def super_block(self) -> bool:
        """Whether scales, and minima, are codes in super-blocks of a row."""
        return self.block_type is not None and self.block_type.groups > 1

    def fit_width(self, in_features: int) -> int:
        """Neighbouring weights of a row whose grids are found together: of a group, or of a super-block."""
        return self.block_type.block if self.block_type is not None else self.width(in_features)

    def fitting(self, in_features: int) -> "Scheme | None":
        """The same, or the scheme of the type that takes its place for such rows; None: there is none."""
        if self.type is None:
            return self
        found = fitting(self.type, in_features)
        return self if found == self.type else None if found is None else Scheme(type=found)

    @property
    def torch_dtype(self) -> "torch.dtype":
        """`scale_dtype` as torch names it."""
        import torch

        return {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[
            self.scale_dtype
        ]

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

    def stored_bits(self, out: int, in_features: int) -> int:
        """Bits of codes, scales and zero points of a weight, each packed into one stream of 32-bit words."""
        if self.block_type is not None:
            return 8 * self.block_type.bytes * out * in_features // self.block_type.block
        groups = out * self.groups(in_features)
        tiles = -(-out // self.tile_rows) * self.groups(in_features)
        type_bits = _TYPE_BITS[self.scale_dtype]
        bits = _stream(out * in_features, self.bits)
        for second_level in (self.scale_bits,) if self.sym else (self.scale_bits, self.zero_bits):
            if second_level is not None:
                bits += _stream(groups, second_level) + 2 * tiles * type_bits
        if self.scale_bits is None:
            bits += groups * type_bits
        if not self.sym and self.zero_bits is None:
            bits += _stream(groups, self.bits) if self.round_zero else groups * type_bits
        return bits

    def paper_bits(self, in_features: int) -> float:
        """Average bits per weight as the papers count them, without outliers.

        b + (q_s + q_z) / g + (16 per second-level statistic) / (g * tile_rows); SpQR, arXiv 2306.03078, section
        4: 3 bit, g16, 3-bit scales and zero points in tiles of 16 are 3.625 bits.
        """
        if self.block_type is not None:
            return self.block_type.bits_per_weight
        type_bits = _TYPE_BITS[self.scale_dtype]
        scale, zero = (
            float(type_bits),
            0.0 if self.sym else float(self.bits if self.round_zero else type_bits),
        )
        tile = 2 * type_bits / self.tile_rows
        if self.scale_bits is not None:
            scale = self.scale_bits + tile
        if self.zero_bits is not None:
            zero = self.zero_bits + tile
        return self.bits + (scale + zero) / self.width(in_features)

    def round_scale(self, scale: "torch.Tensor") -> "torch.Tensor":
        """Round fp32 scales to the storage type, keeping their sign and keeping them non-zero.

        The floor is the smallest value that the type can tell from zero. A higher floor (the references
        use 1e-5 in fp16) turns groups of very small weights into zeros; a coarsely stored small scale is
        still the better grid.
        """
        import torch

        dtype = self.torch_dtype
        info = torch.finfo(dtype)
        floor = 2.0**-24 if dtype is torch.float16 else info.tiny
        # -0 + 0 is 0: only what is less than nothing is negative.
        return scale.abs().clamp_(floor, info.max).copysign_(scale + 0.0).to(dtype).float()


def type_settings(name: str) -> dict[str, Any]:
    """What a type fixes of a scheme."""
    found = BLOCK_TYPES[name]
    return {
        "bits": found.bits,
        "group_size": found.group,
        "sym": not found.minima,
        "scale_dtype": "float16",
        "round_zero": not found.minima,
        "scale_bits": None,
        "zero_bits": None,
    }


def _stream(count: int, bits: int) -> int:
    """Bits of a packed stream of codes."""
    return 32 * packed_words(count, bits)
