import pytest
import torch

from roundel.grid.scheme import Scheme
from roundel.runtime import reference
from roundel.runtime.packed_weight import PackedWeight
from runtime.random_weights import GROUPS, a_weight, blocks


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("bits", [4, 5])
@pytest.mark.parametrize("group", GROUPS)
def test_activations_are_rounded_within_their_blocks(group: int, bits: int, ordered: bool) -> None:
    """Steps of the largest of a block over 127, or over 127 254 + 126, half of which is what is lost.

    The finer ones where the largest is more than 3 times the root mean square of all, or codes have more than 4 bits.
    """
    scheme = Scheme(bits=bits, group_size=group)
    weight = a_weight(scheme, 3, 213, 0, ordered=ordered)
    packed, x = PackedWeight.pack(weight), torch.randn(5, 213, generator=torch.Generator().manual_seed(0))
    x[2, :50] = 0
    x[3, 60] = 30
    found = reference.round_activations(x, packed.layout, weight.order)
    order = torch.arange(213) if weight.order is None else weight.order
    size = x.double().square().mean(1, keepdim=True).sqrt()
    told: set[float] = set()
    for block in blocks(scheme, 213):
        original, rounded = x[:, order[block]].double(), found[:, order[block]].double()
        largest = original.abs().amax(1, keepdim=True)
        most = torch.where((largest > 3 * size) | (bits > 4), 127 * 254 + 126, 127)
        told.update(most.flatten().tolist())
        step = torch.where(largest == 0, 1.0, largest / most)
        assert torch.allclose(rounded.abs().amax(1, keepdim=True), largest, rtol=3e-7, atol=0)
        assert ((rounded - original).abs() <= 0.505 * step).all()
        assert ((rounded / step).round() - rounded / step).abs().max() < 1e-2
    assert len(told) == (2 if bits <= 4 else 1)


def test_what_is_not_finite_is_left_as_it_is() -> None:
    packed = PackedWeight.pack(a_weight(Scheme(), 3, 213, 0))
    x = torch.randn(3, 213, generator=torch.Generator().manual_seed(0))
    x[1, 5] = torch.nan
    found = reference.round_activations(x, packed.layout)
    assert torch.equal(found[1].nan_to_num(), x[1].nan_to_num())
    assert torch.equal(found[[0, 2]], reference.round_activations(x[[0, 2]], packed.layout))
