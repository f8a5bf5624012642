import math

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from hypothesis import given, settings
from hypothesis import strategies as st

from roundel.activations.rounding import grid_of_range, quantize_static, quantize_vectors
from roundel.activations.scheme import ActivationScheme, StaticGrid

SCHEMES = st.builds(ActivationScheme, bits=st.integers(2, 8), sym=st.booleans(), static=st.just(False))


def vectors(seed: int, *shape: int) -> torch.Tensor:
    """Channels of very different size and a common shift, as activations have."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator)
    return x * torch.rand(shape[-1], generator=generator).pow(4) * 8 + 0.3


def check_by_hand(found: list[float], vector: list[float], scheme: ActivationScheme) -> None:
    """One vector in Python's own arithmetic; on a tie (the largest value of a symmetric grid) either side is right."""
    lo, hi, m = min(*vector, 0.0), max(*vector, 0.0), scheme.midpoint
    scale = 2 * max(-lo, hi) / (2 * m - 1) if scheme.sym else (hi - lo) / (2 * m - 1)
    zero = 0 if scheme.sym else round(-m - lo / scale)
    for value, rounded in zip(vector, found, strict=True):
        position = value / scale + zero
        sides = {round(position - 1e-4), round(position + 1e-4)}
        wanted = [scale * (min(max(code, -m), m - 1) - zero) for code in sides]
        assert min(abs(rounded - w) for w in wanted) <= 1e-5 * abs(rounded) + 1e-6


@settings(max_examples=40)
@given(SCHEMES, st.integers(0, 1000))
def test_every_vector_is_rounded_on_its_own_grid(scheme: ActivationScheme, seed: int) -> None:
    x = vectors(seed, 2, 3, 8)
    found = quantize_vectors(x, scheme)
    for i in range(2):
        for j in range(3):
            check_by_hand(found[i, j].tolist(), x[i, j].tolist(), scheme)
            assert len(found[i, j].unique()) <= 2**scheme.bits


@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_compressed_tensors_computes_the_same_bit_for_bit(bits: int, sym: bool) -> None:
    x = vectors(0, 4, 50, 96)
    x[1, 3] = 0
    # Ties: multiples of half a step of a grid from -128 to 127.
    x[2, :, :] = (torch.arange(96) - 48) / 2
    x[2, :, 0], x[2, :, 1] = -128, 127
    arguments = QuantizationArgs(num_bits=bits, type="int", symmetric=sym, strategy="token", dynamic=True)
    theirs = fake_quantize(x, *compute_dynamic_scales_and_zp(x, arguments, None), arguments)
    assert torch.equal(quantize_vectors(x, ActivationScheme(bits, sym, static=False)), theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_type_stays_and_zeros_stay_zeros(dtype: torch.dtype) -> None:
    x = torch.zeros(2, 3, 16, dtype=dtype)
    x[0, 0] = torch.linspace(1, 2, 16)
    for scheme in (ActivationScheme(4, False, False), ActivationScheme(4, True, False)):
        found = quantize_vectors(x, scheme)
        assert found.dtype is dtype
        assert torch.equal(found[1], x[1])
        assert torch.isfinite(found).all()


def test_gradients_pass_straight_through_and_stop_beyond_a_fixed_range() -> None:
    x = vectors(1, 5, 16).requires_grad_()
    direction = torch.randn(5, 16)
    (quantize_vectors(x, ActivationScheme(3, False, False)) * direction).sum().backward()
    assert torch.equal(x.grad, direction)
    x.grad = None
    grid = StaticGrid(scale=0.1, zero=-2)  # codes -4..3: from -0.2 to 0.5
    (quantize_static(x, grid, ActivationScheme(3, False, static=True)) * direction).sum().backward()
    codes = (x / 0.1 - 2).round()
    inside = (codes >= -4) & (codes <= 3)
    assert 0 < int(inside.sum()) < inside.numel()
    assert torch.equal(x.grad, direction * inside)


@settings(max_examples=40)
@given(st.integers(2, 8), st.booleans(), st.floats(-50, 0), st.floats(0, 50))
def test_a_static_grid_spans_its_range(bits: int, sym: bool, lo: float, hi: float) -> None:
    scheme = ActivationScheme(bits, sym, static=True)
    scale, zero = grid_of_range(torch.tensor(lo), torch.tensor(hi), scheme)
    grid = StaticGrid(float(scale), int(zero))
    points = torch.tensor([lo, 0.0, hi])
    found = quantize_static(points, grid, scheme)
    assert found[1] == 0
    # Rounding the zero point moves an end by half a step at most; the symmetric grid lacks one code on top.
    assert float((found - points).abs().max()) <= grid.scale * 1.001 + 1e-12
    assert not math.isnan(float(found.sum()))
