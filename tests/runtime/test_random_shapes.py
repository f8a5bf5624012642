"""Everything at once, on thousands of weights of which nothing is chosen."""

import random

import pytest
import torch

from roundel.grid.block_types import BLOCK_TYPES
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.runtime import reference
from roundel.runtime.kernels import Handle
from roundel.runtime.packed_weight import PackedWeight
from runtime.random_weights import BLOCKS, FORMS, OUTLIERS, SETS, TILE_ROWS, a_weight, exact_product, summed

WEIGHTS = 2500
# Of what is summed.
EXACT = 1e-6


def any_weight(choose: random.Random) -> QuantizedWeight:
    rows, outliers, ordered = choose.randint(1, 70), choose.choice(OUTLIERS), choose.random() < 0.3
    seed = choose.randrange(2**31)
    if choose.random() < 0.2:
        name = choose.choice(BLOCKS)
        return a_weight(Scheme(type=name), rows, BLOCK_TYPES[name].block * choose.randint(1, 3), seed)
    columns = choose.choice((choose.randint(1, 40), choose.randint(1, 600)))
    group = choose.choice((-1, 8, 16, 32, 64, 128, choose.randint(1, 20), choose.randint(1, 300)))
    scheme = Scheme(
        bits=choose.randint(2, 8),
        group_size=group,
        tile_rows=choose.choice((*TILE_ROWS, choose.randint(1, 80))),
        **FORMS[choose.choice(list(FORMS))],
    )
    return a_weight(scheme, rows, columns, seed, outliers, ordered)


def any_activations(choose: random.Random, columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(choose.randrange(2**31))
    x = torch.randn(choose.randint(0, 9), columns, generator=generator)
    kind = choose.randrange(4)
    if kind == 1:  # few are much larger than the rest
        x *= 1 + 100 * (torch.rand(x.shape, generator=generator) < 0.02)
    if kind == 2:  # most are zero
        x *= torch.rand(x.shape, generator=generator) < 0.2
    if kind == 3:  # of many sizes
        x *= 10 ** (12 * torch.rand(len(x), 1, generator=generator) - 6)
    return x


@pytest.mark.slow(f"{WEIGHTS} random shapes")
@pytest.mark.parametrize("name", SETS)
def test_thousands_of_shapes(name: str) -> None:
    """Products may miss float64, or the reference of fast mode, by 1e-6 of what is summed (random_weights.py)."""
    for seed in range(WEIGHTS):
        choose = random.Random(seed)
        weight = any_weight(choose)
        packed = PackedWeight.pack(weight)
        assert packed.unpack().equals(weight), seed
        handle, x = Handle(packed, name), any_activations(choose, weight.shape[1])
        room = EXACT * summed(x, weight)
        found = handle.multiply(x, "exact")
        assert found is not None, seed
        assert ((found.double() - exact_product(x, weight)).abs() <= room).all(), seed
        found = handle.multiply(x, "fast")
        assert found is not None, seed
        assert ((found - reference.multiply(x, packed, "fast")).abs() <= room).all(), seed
        columns = slice(None) if weight.order is None else weight.order
        decoded, first = weight.dequantize()[:, columns], choose.randrange(weight.shape[0])
        assert torch.equal(handle.decode(first, weight.shape[0]), decoded[first:]), seed
