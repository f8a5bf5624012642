"""Random integers of every form that a weight may have, and what products with them may miss by rounding."""

import pytest
import torch

from roundel.compiled.extension import instruction_sets
from roundel.grid.block_types import BLOCK_TYPES
from roundel.grid.outliers import Outliers
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.grid.super_blocks import SuperBlocks, code_limits
from roundel.grid.two_level import Statistic, Tiles, statistic_values

SETS = instruction_sets() or [
    pytest.param("", marks=pytest.mark.skip(reason="this installation has no kernels"))
]
needs_kernels = pytest.mark.skipif(not instruction_sets(), reason="this installation has no kernels")

GROUPS = (1, 8, 12, 16, 32, 100, 128, -1)
TILE_ROWS = (16, 32, 8, 5)

FORMS: dict[str, dict[str, object]] = {
    "sym": {"sym": True},
    "sym, bfloat16": {"sym": True, "scale_dtype": "bfloat16"},
    "asym": {},
    "asym, float32": {"scale_dtype": "float32"},
    "real zeros": {"round_zero": False},
    "real zeros, bfloat16": {"round_zero": False, "scale_dtype": "bfloat16"},
    "two levels, nibbles": {"round_zero": False, "scale_bits": 3, "zero_bits": 4},
    "two levels, bytes": {"round_zero": False, "scale_bits": 6, "zero_bits": 3, "scale_dtype": "float32"},
    "two levels, scales": {"scale_bits": 4},
    "two levels, zeros": {"round_zero": False, "zero_bits": 5},
    "two levels, sym": {"sym": True, "sym_range": "classic", "scale_bits": 8},
}
"""Settings of a scheme by what they are, bits and group size left out."""

BLOCKS = tuple(BLOCK_TYPES)
OUTLIERS = ("none", "empty", "some", "a whole row")


def a_weight(
    scheme: Scheme, rows: int, columns: int, seed: int, outliers: str = "none", ordered: bool = False
) -> QuantizedWeight:
    """Nothing about it is as a method would choose it, apart from the ranges.

    Args:
        scheme: its grid.
        rows, columns: out and in.
        seed: of everything random.
        outliers: one of OUTLIERS.
        ordered: its columns lie in an order of their own.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, scheme.groups(columns))
    codes = torch.randint(0, 2**scheme.bits, (rows, columns), generator=generator, dtype=torch.uint8)
    zero = None if scheme.sym else _zeros(scheme, shape, columns, generator)
    return QuantizedWeight(
        codes,
        _scales(scheme, shape, columns, generator),
        zero,
        scheme,
        None if outliers == "none" else _outliers(outliers, rows, columns, generator),
        torch.randperm(columns, generator=generator) if ordered else None,
    )


def _scales(scheme: Scheme, shape: tuple[int, int], columns: int, generator: torch.Generator) -> Statistic:
    if scheme.super_block:
        return _super_blocks(scheme, shape, columns, 1e-3, generator)
    if scheme.scale_bits is not None:
        return _tiles(scheme, shape, scheme.scale_bits, 1e-2, generator)
    scale = 0.01 + 0.02 * torch.rand(shape, generator=generator)
    if scheme.sym and scheme.sym_range == "full":
        scale *= torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return scale.to(scheme.torch_dtype)


def _zeros(scheme: Scheme, shape: tuple[int, int], columns: int, generator: torch.Generator) -> Statistic:
    if scheme.super_block:
        return _super_blocks(scheme, shape, columns, -1e-3, generator)
    if scheme.zero_bits is not None:
        return _tiles(scheme, shape, scheme.zero_bits, 0.5, generator)
    if scheme.minima:
        return (-0.3 * torch.rand(shape, generator=generator)).to(scheme.torch_dtype)
    if scheme.round_zero:
        return torch.randint(0, 2**scheme.bits, shape, generator=generator, dtype=torch.uint8)
    return (scheme.levels * (1.4 * torch.rand(shape, generator=generator) - 0.2)).to(scheme.torch_dtype)


def _tiles(
    scheme: Scheme, shape: tuple[int, int], bits: int, size: float, generator: torch.Generator
) -> Tiles:
    tiles = (-(-shape[0] // scheme.tile_rows), shape[1])
    return Tiles(
        torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8),
        (size * (0.1 + torch.rand(tiles, generator=generator))).to(scheme.torch_dtype),
        torch.randn(tiles, generator=generator).to(scheme.torch_dtype),
        bits,
        scheme.tile_rows,
    )


def _super_blocks(
    scheme: Scheme, shape: tuple[int, int], columns: int, size: float, generator: torch.Generator
) -> SuperBlocks:
    block = scheme.block_type
    assert block is not None
    low, high = code_limits(block.scale_bits, not block.minima)
    dtype = torch.uint8 if block.minima else torch.int8
    return SuperBlocks(
        torch.randint(low, high + 1, shape, generator=generator).to(dtype),
        (size * (0.1 + torch.rand(shape[0], columns // block.block, generator=generator))).half(),
        block.scale_bits,
    )


def _outliers(kind: str, rows: int, columns: int, generator: torch.Generator) -> Outliers:
    share = 0.0 if kind == "empty" else 0.03
    mask = torch.rand(rows, columns, generator=generator) < share
    if kind == "a whole row":
        mask[rows // 2] = True
    return Outliers.where(mask, torch.randn(rows, columns, generator=generator))


def exact_product(x: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    """`x W^T` in float64."""
    return x.double() @ weight.dequantize().double().T


def summed(x: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    """The size of what is summed for every result, `[n, rows]` float64: rounding is held against it.

        sum over columns of  X (|s| (|q - m| + |m - z|) + |outlier|)

    m is the middle of the codes, from which the kernels count them, and X the largest activation of those that share a
    scale: 32 neighbours of a group, or 16 or 8 where groups are no wider than that.
    """
    scheme, (_, columns) = weight.scheme, weight.shape
    group = torch.arange(columns) // scheme.width(columns)
    scale = statistic_values(weight.scale).double()[:, group]
    middle = scheme.midpoint
    if weight.zero is None:
        centre = torch.zeros_like(scale)
    else:
        zero = statistic_values(weight.zero).double()[:, group]
        centre = scale.abs() * middle + zero.abs() if scheme.minima else scale * (middle - zero)
    size = scale.abs() * (weight.codes.double() - middle).abs() + centre.abs()
    if weight.outliers is not None:
        found = weight.outliers
        lone = Outliers(found.counts, found.columns, found.values.abs(), found.width)
        size += lone.add_to(torch.zeros(weight.shape))
    largest = x.double().abs()
    if weight.order is not None:
        largest = largest[:, weight.order]
    for block in blocks(scheme, columns):
        largest[:, block] = largest[:, block].amax(1, keepdim=True)
    return largest @ size.T


def blocks(scheme: Scheme, columns: int) -> list[slice]:
    """Columns of the codes whose activations share a scale."""
    group = scheme.width(columns)
    width = 32 if group > 16 else 16 if group > 8 else 8
    ends = [min(start + group, columns) for start in range(0, columns, group)]
    return [
        slice(at, min(at + width, end))
        for start, end in zip(range(0, columns, group), ends, strict=True)
        for at in range(start, end, width)
    ]
