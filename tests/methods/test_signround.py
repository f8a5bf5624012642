import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roundel.grid.affine import QParams, minmax_start
from roundel.grid.joint import joint_start
from roundel.grid.outliers import Outliers
from roundel.grid.scheme import Scheme
from roundel.grid.search import searched_start
from roundel.grid.two_level import statistic_values
from roundel.methods.signround import RoundingOffsets

SCHEMES = st.builds(
    Scheme,
    bits=st.integers(2, 8),
    group_size=st.sampled_from([-1, 8, 20]),
    sym=st.booleans(),
    scale_dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
)


def make(
    scheme: Scheme, seed: int, *, searched: bool = False
) -> tuple[torch.Tensor, QParams, RoundingOffsets]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 48, generator=generator)
    start = searched_start(weight, scheme) if searched else minmax_start(weight, scheme)
    return weight, start, RoundingOffsets(weight, start, scheme, lr=0.01, minmax_lr=0.01, minmax_limit=2.0)


def disturb(offsets: RoundingOffsets, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        offsets.offset += torch.rand(offsets.offset.shape, generator=generator) - 0.5
        offsets.low *= 0.7 + 0.6 * torch.rand(offsets.low.shape, generator=generator)
        offsets.high *= 0.7 + 0.6 * torch.rand(offsets.high.shape, generator=generator)


@given(SCHEMES, st.integers(0, 10_000), st.booleans())
def test_step_zero_is_round_to_nearest(scheme: Scheme, seed: int, searched: bool) -> None:
    weight, start, offsets = make(scheme, seed, searched=searched)
    rounded = start.quantize(weight, scheme)
    if scheme.scale_dtype == "float32" and not searched:
        # (n - z0 + z0) / n is 1 up to an ulp when z0 is no integer; 16-bit storage swallows it.
        assert torch.allclose(offsets.export().dequantize(), rounded.dequantize(), rtol=1e-6, atol=1e-6)
    else:
        assert offsets.export().equals(rounded)


@given(SCHEMES, st.integers(0, 10_000))
def test_what_is_tuned_is_what_is_exported(scheme: Scheme, seed: int) -> None:
    _, _, offsets = make(scheme, seed)
    disturb(offsets, seed)
    exported = offsets.export()
    assert torch.equal(exported.dequantize(), offsets().detach())
    assert int(exported.codes.max()) <= scheme.levels


@pytest.mark.parametrize("grid", [{}, {"scale_bits": 3, "zero_bits": 3, "tile_rows": 4}], ids=str)
def test_a_fixed_grid_with_outliers_tunes_offsets_alone(grid: dict[str, int]) -> None:
    scheme = Scheme(bits=3, group_size=8, round_zero=False, **grid)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 48, generator=generator)
    start = joint_start(weight, scheme, None, search=True)
    outliers = Outliers.where(weight > 1.5, torch.randn(5, 48, generator=generator))
    offsets = RoundingOffsets(
        weight, start, scheme, lr=0.01, minmax_lr=None, minmax_limit=1.0, outliers=outliers
    )
    step_zero = outliers.add_to(start.quantize(weight, scheme).dequantize())
    assert torch.equal(offsets().detach(), step_zero)
    assert len(offsets.parameter_groups()) == 1
    disturb(offsets, 1)
    exported = offsets.export()
    assert torch.equal(exported.dequantize(), offsets().detach())
    assert not torch.equal(exported.dequantize(), step_zero)
    assert exported.outliers.equals(outliers)
    assert torch.equal(start.scale[..., 0], statistic_values(exported.scale))
    offsets().sum().backward()
    inside = (offsets.groups / start.scale + start.zero + offsets.offset).round()
    inside = (inside >= 0) & (inside <= 7)
    assert torch.allclose(offsets.offset.grad, start.scale * inside)


@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("group", [-1, 20])
def test_gradients_are_those_of_the_straight_through_surrogate(sym: bool, group: int) -> None:
    """Finite differences of the formula with every rounding replaced by its offset at the present point."""
    scheme = Scheme(bits=3, group_size=group, sym=sym, scale_dtype="float32")
    weight, start, offsets = make(scheme, 3)
    disturb(offsets, 4)
    direction = torch.randn(5, 48, generator=torch.Generator().manual_seed(5))
    (offsets() * direction).sum().backward()

    n, width = scheme.levels, scheme.width(48)
    rows = torch.nn.functional.pad(weight, (0, -48 % width)).view(5, -1, width).double()
    towards = torch.nn.functional.pad(direction, (0, -48 % width)).view(5, -1, width).double()
    s0, z0 = start.scale.double(), start.zero.double()

    def raw(v, low, high):
        stretch = high if sym else (high * (n - z0) + low * z0) / n
        s = s0 * stretch
        return s, rows / s + v, z0 if sym else low * z0 * s0 / s

    point = [p.detach().double() for p in (offsets.offset, offsets.low, offsets.high)]
    _, u, z = raw(*point)
    jump_u, jump_z = u.round() - u, z.round() - z
    code = u.round() + z.round()
    inside = (code >= 0) & (code <= n)  # the edge codes included, as in torch.clamp

    def surrogate(v, low, high):
        s, u, z = raw(v, low, high)
        moving = u + jump_u + z + jump_z
        return (s * (torch.where(inside, moving, code.clamp(0, n)) - (z + jump_z)) * towards).sum()

    generator = torch.Generator().manual_seed(6)
    for index, found in enumerate((offsets.offset.grad, offsets.low.grad, offsets.high.grad)):
        if found is None:
            assert sym
            assert index == 1
            continue
        for _ in range(12):
            at = tuple(int(torch.randint(d, (1,), generator=generator)) for d in found.shape)
            if index == 0 and at[1] * width + at[2] >= 48:
                continue  # padding
            ends = []
            for step in (1e-6, -1e-6):
                moved = [p.clone() for p in point]
                moved[index][at] += step
                ends.append(surrogate(*moved))
            assert float(found[at]) == pytest.approx(float(ends[0] - ends[1]) / 2e-6, rel=1e-3, abs=1e-3)


def test_range_factors_stay_in_their_domain() -> None:
    _, _, offsets = make(Scheme(bits=4, group_size=16), 0)
    with torch.no_grad():
        offsets.low.fill_(-1)
        offsets.high.fill_(5)
    offsets.project()
    assert torch.all(offsets.low == 0)
    assert torch.all(offsets.high == 2)


def test_symmetric_tuning_never_flips_the_sign_of_a_scale() -> None:
    _, start, offsets = make(Scheme(bits=4, group_size=16, sym=True), 0)
    with torch.no_grad():
        offsets.high.fill_(0.05)
    assert torch.equal(torch.sign(offsets.export().scale.float()), torch.sign(start.scale.squeeze(-1)))


def test_signround_tunes_offsets_only() -> None:
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    scheme = Scheme(bits=4, group_size=16)
    offsets = RoundingOffsets(
        weight, minmax_start(weight, scheme), scheme, lr=0.1, minmax_lr=None, minmax_limit=1.0
    )
    assert [group["params"] for group in offsets.parameter_groups()] == [[offsets.offset]]
    offsets().sum().backward()
    assert offsets.low.grad is None
    assert offsets.high.grad is None
