"""Gradients of moved ranges are those that autograd finds of the formulas."""

import pytest
import torch

from roundel.grid.scheme import Scheme
from roundel.methods.fake_quantize import straight_through
from roundel.methods.moved_range import moved_range


def formulas(
    low: torch.Tensor, high: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, scheme: Scheme
) -> tuple[torch.Tensor, torch.Tensor]:
    n = scheme.levels
    wanted = scale * ((high * (n - zero) + low * zero) / n)
    stored = straight_through(wanted, scheme.round_scale(wanted.detach()))
    position = low * zero * scale / stored
    return stored, straight_through(position, position.detach().round().clamp(0, n))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32"])
def test_values_and_gradients(bits: int, stored: str) -> None:
    scheme = Scheme(bits=bits, group_size=16, scale_dtype=stored)
    generator = torch.Generator().manual_seed(bits)

    def drawn() -> torch.Tensor:
        return torch.rand(50, 7, 1, generator=generator)

    scale, zero = drawn() * 0.1 + 1e-3, drawn() * scheme.levels
    zero[0] = 0  # ranges with one end at zero
    zero[1] = scheme.levels
    # Some so far in that the zero point is clamped.
    low, high = (1.5 * drawn() for _ in range(2))
    weights = [drawn() - 0.5 for _ in range(2)]
    results = []
    for function in (formulas, moved_range):
        factors = [x.clone().requires_grad_() for x in (low, high)]
        outputs = function(*factors, scale, zero, scheme)
        torch.autograd.backward(outputs, weights)
        results.append(([x.detach() for x in outputs], [x.grad for x in factors]))
    (wanted, wanted_grad), (found, found_grad) = results
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    for a, b in zip(found_grad, wanted_grad, strict=True):
        # Two terms may cancel out: what is left of both has the error of each.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * float(b.abs().max()))
    assert (found[1] == 0).any()
    assert (found[1] == scheme.levels).any()


def test_one_end_moves_the_scale_by_its_part_of_the_range() -> None:
    """By hand: 3 codes below zero of 7, s0 = 1: beta counts 4 / 7, alpha 3 / 7."""
    scheme = Scheme(bits=3, group_size=16, scale_dtype="float32")
    one = torch.ones(1, 1, 1)
    factors = [one.clone().requires_grad_() for _ in range(2)]
    scale, _ = moved_range(*factors, one, 3 * one, scheme)
    scale.sum().backward()
    assert [float(x.grad) for x in factors] == pytest.approx([3 / 7, 4 / 7])
