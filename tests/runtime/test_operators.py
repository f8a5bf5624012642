import gc

import pytest
import torch

from roundel.grid.scheme import Scheme
from roundel.runtime import operators
from roundel.runtime.layout import describe
from roundel.runtime.modes import MODES, Mode
from roundel.runtime.packed_weight import PackedWeight
from roundel.runtime.product import Product
from runtime.random_weights import FORMS, a_weight

PACKED = PackedWeight.pack(
    a_weight(Scheme(bits=3, group_size=16, **FORMS["two levels, nibbles"]), 37, 213, 0, "some", True)
)
OPERANDS = (list(PACKED.parts.values()), " ".join(PACKED.parts), describe(PACKED.layout))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(213,), (3, 213), (2, 3, 213), (0, 213), (20, 213)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_linear_is_what_torch_takes_it_for(dtype: torch.dtype, shape: tuple[int, ...], mode: Mode) -> None:
    """Its schema, its shapes without data, and that it traces with free ones."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.library.opcheck(operators.linear, (x, *OPERANDS, mode))
    assert torch.equal(operators.linear(x, *OPERANDS, mode), Product(PACKED).multiply(x, mode))


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,)])
def test_lookup_is_what_torch_takes_it_for(shape: tuple[int, ...]) -> None:
    rows = torch.randint(0, 37, shape, generator=torch.Generator().manual_seed(0))
    torch.library.opcheck(operators.lookup, (rows, *OPERANDS))
    assert torch.equal(operators.lookup(rows, *OPERANDS), Product(PACKED).lookup(rows))


def test_what_is_prepared_for_a_weight_lives_as_long_as_it_does() -> None:
    weight = PackedWeight.pack(a_weight(Scheme(), 32, 64, 0))
    parts, names, text = list(weight.parts.values()), " ".join(weight.parts), describe(weight.layout)
    before, x = len(operators._PRODUCTS), torch.ones(1, 64)
    first = operators.linear(x, parts, names, text, "exact")
    assert len(operators._PRODUCTS) == before + 1
    parts[0].zero_()  # in its place
    assert not torch.equal(operators.linear(x, parts, names, text, "exact"), first)
    parts[0].data = PackedWeight.pack(a_weight(Scheme(), 32, 64, 0)).parts["codes"]  # moved
    assert torch.equal(operators.linear(x, parts, names, text, "exact"), first)
    assert len(operators._PRODUCTS) == before + 1
    del weight, parts
    gc.collect()
    assert len(operators._PRODUCTS) == before
