import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roundel.grid.affine import minmax_start
from roundel.grid.scheme import Scheme

SCHEMES = st.builds(
    Scheme,
    bits=st.integers(2, 8),
    group_size=st.sampled_from([-1, 1, 7, 32, 100]),
    sym=st.booleans(),
    scale_dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
)


def weights(seed: int, out: int = 6, width: int = 150) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, width, generator=generator)
    weight[:, 3] *= 8
    return weight


def rtn(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    return minmax_start(weight, scheme).quantize(weight, scheme).dequantize()


@given(SCHEMES, st.integers(0, 10_000))
def test_no_weight_moves_further_than_the_grid_allows(scheme: Scheme, seed: int) -> None:
    weight = weights(seed)
    quantized = minmax_start(weight, scheme).quantize(weight, scheme)
    width = scheme.width(weight.shape[1])
    scale = quantized.scale.float().abs().repeat_interleave(width, 1)[:, : weight.shape[1]]
    moved = (quantized.dequantize() - weight).abs() / scale
    # Half a step, one step at the far end of a symmetric grid (it has no code for it), and what rounding
    # the scale and the zero point to their stored types shifts the ends of the range.
    precision = torch.finfo(getattr(torch, scheme.scale_dtype)).eps
    slack = scheme.levels * precision + (0.5 if not scheme.sym else 0.0)
    assert moved.max() <= (1.0 if scheme.sym else 0.5) + slack + 1e-3


@given(SCHEMES, st.sampled_from([0.0, 1.0, -1.0, 0.25, -3.0, 1.5e-3, -6e-5]), st.integers(1, 150))
def test_constant_groups_are_exact(scheme: Scheme, value: float, width: int) -> None:
    # Below the smallest fp16 number nothing can be exact.
    stored = torch.tensor(value).to(getattr(torch, scheme.scale_dtype)).item()
    weight = torch.full((3, width), stored)
    assert torch.equal(rtn(weight, scheme), weight)


@given(st.integers(2, 8), st.booleans(), st.floats(0.01, 100), st.sampled_from([1, -1]))
def test_one_sided_groups_keep_their_extreme(bits: int, sym: bool, size: float, sign: int) -> None:
    weight = sign * torch.linspace(0.2, 1.0, 32)[None] * size
    scheme = Scheme(bits=bits, group_size=32, sym=sym, scale_dtype="float32")
    error = (rtn(weight, scheme) - weight).abs().max()
    steps = 2**bits - 1 if not sym else 2 ** (bits - 1)
    assert error <= size / steps / 2 * 1.001


@given(SCHEMES, st.integers(0, 10_000))
def test_a_short_last_group_is_like_a_group_of_its_own(scheme: Scheme, seed: int) -> None:
    weight = weights(seed)
    width = scheme.width(weight.shape[1])
    last = weight.shape[1] % width or width
    alone = scheme.model_copy(update={"group_size": -1})
    assert torch.equal(rtn(weight, scheme)[:, -last:], rtn(weight[:, -last:].contiguous(), alone))


@given(st.integers(2, 8), st.integers(0, 10_000))
def test_full_range_symmetric_puts_the_signed_extreme_on_code_zero(bits: int, seed: int) -> None:
    weight = weights(seed, width=64)
    scheme = Scheme(bits=bits, group_size=64, sym=True, scale_dtype="float32")
    quantized = minmax_start(weight, scheme).quantize(weight, scheme)
    extreme = weight.abs().argmax(1, keepdim=True)
    assert torch.all(quantized.codes.gather(1, extreme) == 0)
    assert torch.allclose(quantized.dequantize().gather(1, extreme), weight.gather(1, extreme))


def test_classic_symmetric_scales_are_positive_and_span_the_larger_side() -> None:
    weight = weights(1)
    scheme = Scheme(bits=4, group_size=50, sym=True, sym_range="classic", scale_dtype="float32")
    scale = minmax_start(weight, scheme).scale.squeeze(-1)
    assert torch.all(scale > 0)
    assert torch.allclose(scale * 7.5, weight.view(6, 3, 50).abs().amax(-1))


@settings(max_examples=20)
@given(st.sampled_from(["float16", "bfloat16", "float32"]), st.floats(-1e5, 1e5, width=32))
def test_scales_are_stored_values_and_never_zero(dtype: str, value: float) -> None:
    scheme = Scheme(scale_dtype=dtype)
    rounded = scheme.round_scale(torch.tensor([value, 0.0, -1e-30, 1e-30]))
    assert torch.equal(rounded.to(getattr(torch, dtype)).float(), rounded)
    assert torch.all(rounded != 0)
    assert torch.all(torch.isfinite(rounded))
    assert (rounded[0] < 0) == (value < 0)


@pytest.mark.parametrize(
    ("field", "value"), [("bits", 1), ("bits", 9), ("group_size", 0), ("group_size", -2)]
)
def test_impossible_schemes_are_refused(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=field):
        Scheme(**{field: value})
