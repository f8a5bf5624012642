import pytest
import torch

from roundel.grid.scheme import Scheme
from roundel.runtime import operators
from roundel.runtime.layout import describe
from roundel.runtime.packed_weight import PackedWeight
from roundel.runtime.product import MODES, Mode, Product
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
