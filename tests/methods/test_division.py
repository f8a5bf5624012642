import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roundel.grid.affine import minmax_start
from roundel.grid.groups import from_groups, to_groups
from roundel.grid.joint import joint_start
from roundel.grid.outliers import Outliers
from roundel.grid.scheme import Scheme
from roundel.grid.search import searched_start
from roundel.methods.division import FullDivisor, LearnedDivision, LowRankDivisor, StepSizes
from roundel.methods.options import DivisionOptions

OUT, IN = 6, 48
SCHEMES = st.builds(
    Scheme,
    bits=st.integers(2, 8),
    group_size=st.sampled_from([-1, 8, 20]),
    sym=st.booleans(),
    scale_dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
)
KINDS = ("full", "low-rank")


def make(
    scheme: Scheme,
    kind: str,
    *,
    offsets: bool = False,
    searched: bool = False,
    seed: int = 0,
    **options: object,
) -> LearnedDivision:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(OUT, IN, generator=generator)
    start = searched_start(weight, scheme) if searched else minmax_start(weight, scheme)
    divisor = FullDivisor(weight) if kind == "full" else LowRankDivisor(weight, 3, generator)
    return LearnedDivision(
        weight,
        start,
        scheme,
        **{"divisor": divisor, "steps": StepSizes(0.01, 0.01, 0.01 if offsets else None), **options},
    )


def disturb(division: LearnedDivision, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in division.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


def weight_of(division: LearnedDivision) -> torch.Tensor:
    return from_groups(division.groups, IN)


@given(SCHEMES, st.sampled_from(KINDS), st.booleans(), st.booleans(), st.integers(0, 10_000))
def test_step_zero_is_round_to_nearest(
    scheme: Scheme, kind: str, offsets: bool, searched: bool, seed: int
) -> None:
    division = make(scheme, kind, offsets=offsets, searched=searched, seed=seed)
    rounded = division.start.quantize(weight_of(division), scheme)
    assert division.export().equals(rounded)
    assert torch.equal(division().detach(), rounded.dequantize())


@given(SCHEMES, st.sampled_from(KINDS), st.booleans(), st.integers(0, 10_000))
def test_what_is_tuned_is_what_is_exported(scheme: Scheme, kind: str, offsets: bool, seed: int) -> None:
    division = make(scheme, kind, offsets=offsets, seed=seed)
    disturb(division, seed)
    exported = division.export()
    assert torch.equal(exported.dequantize(), division().detach())
    for group in to_groups(exported.dequantize(), scheme).flatten(0, 1):
        assert len(group.unique()) <= 2**scheme.bits


def test_the_formula_is_the_papers() -> None:
    """W^ = s1 clamp(round(W / (s1 S2 s3)), -z, n - z), written out."""
    scheme = Scheme(bits=3, group_size=-1, scale_dtype="float32")
    division = make(scheme, "full")
    disturb(division, 1)
    divisor: FullDivisor = division.divisor
    s1 = division.start.scale[:, 0] * division.log_scale[:, 0].exp()
    z = division.start.zero[:, 0].round()
    inner = weight_of(division) / (s1 * divisor.entries.exp() * divisor.rows.exp())
    wanted = s1 * torch.maximum(torch.minimum(inner.round(), 7 - z), -z)
    assert torch.allclose(division(), wanted, atol=1e-5)


@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("group", [-1, 20])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offsets", [False, True])
def test_gradients_are_those_of_the_straight_through_surrogate(
    sym: bool, group: int, kind: str, offsets: bool
) -> None:
    """Finite differences of the formula with every rounding replaced by its offset at the present point."""
    scheme = Scheme(bits=3, group_size=group, sym=sym, scale_dtype="float32")
    division = make(scheme, kind, offsets=offsets)
    disturb(division, 4)
    direction = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(5))
    (division() * direction).sum().backward()

    named = {name: p for name, p in division.named_parameters() if p.requires_grad}
    point = {name: p.detach().double() for name, p in named.items()}
    rows, towards = division.groups.double(), to_groups(direction, scheme).double()
    if IN % rows.shape[-1]:
        towards[:, -1, IN % rows.shape[-1] :] = 0  # padding
    s0, z = division.start.scale.double(), division.start.stored_zero(scheme).double()

    def raw(p: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        if kind == "full":
            log_divisor = p["divisor.entries"] + p["divisor.rows"]
        else:
            log_divisor = p["divisor.left"] @ p["divisor.right"] + p["divisor.rows"] + p["divisor.columns"]
        s = s0 * p["log_scale"].exp()
        u = rows / (s * to_groups(log_divisor, scheme).exp())
        return s, u + p.get("offset", torch.tensor(0.0))

    _, u = raw(point)
    jump = u.round() - u
    inside = (u.round() + z >= 0) & (u.round() + z <= scheme.levels)
    codes = (u.round() + z).clamp(0, scheme.levels)

    def surrogate(p: dict[str, torch.Tensor]) -> torch.Tensor:
        s, u = raw(p)
        return (s * (torch.where(inside, u + jump + z, codes) - z) * towards).sum()

    generator = torch.Generator().manual_seed(6)
    for name, parameter in named.items():
        for _ in range(8):
            at = tuple(int(torch.randint(d, (1,), generator=generator)) for d in parameter.shape)
            if name == "offset" and at[1] * rows.shape[-1] + at[2] >= IN:
                continue  # padding
            ends = []
            for step in (1e-6, -1e-6):
                moved = {key: value.clone() for key, value in point.items()}
                moved[name][at] += step
                ends.append(surrogate(moved))
            wanted = float(ends[0] - ends[1]) / 2e-6
            assert float(parameter.grad[at]) == pytest.approx(wanted, rel=2e-3, abs=2e-4), name


def test_gradients_are_the_closed_formulas() -> None:
    """dL/dlog S' = -(W / S') m G and dL/dlog s1 = sum G s1 (q - u m): nothing from weights beyond the grid."""
    scheme = Scheme(bits=2, group_size=-1, scale_dtype="float32")
    division = make(scheme, "full")
    disturb(division, 2)
    gradient = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(3))
    division().backward(gradient)
    divisor: FullDivisor = division.divisor
    s1, z = division.grid()
    s1, z = s1[:, 0].detach(), z[:, 0]
    weight = weight_of(division)
    divided = (divisor.entries + divisor.rows).detach().exp()
    u = weight / (s1 * divided)
    m = (u.round() >= -z) & (u.round() <= 3 - z)
    q = torch.maximum(torch.minimum(u.round(), 3 - z), -z)
    assert 0 < int((~m).sum()) < m.numel()
    wanted = -(weight / divided) * m * gradient
    assert torch.allclose(divisor.entries.grad, wanted, atol=1e-5)
    assert torch.allclose(divisor.rows.grad, wanted.sum(1, keepdim=True), atol=1e-4)
    scale = (gradient * s1 * (q - u * m)).sum(1)
    assert torch.allclose(division.log_scale.grad.flatten(), scale, atol=1e-4)


@pytest.mark.parametrize(("out", "width"), [(6, 48), (48, 6), (20, 20)])
def test_full_rank_spans_flexround(out: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out, width, generator=generator)
    wanted = torch.randn(out, width, generator=generator)
    rank = DivisionOptions(rank=1.0).resolved_rank((out, width))
    low = LowRankDivisor(weight, rank, generator)
    full = FullDivisor(weight)
    with torch.no_grad():
        full.entries.copy_(wanted)
        if width <= out:
            # U as drawn is a basis of all rows: L alone reaches everything.
            low.left.copy_(torch.linalg.solve(low.right.T.double(), wanted.T.double()).T)
        else:
            low.left.copy_(torch.eye(out))
            low.right.copy_(wanted)
    assert torch.allclose(low(), full(), atol=1e-4)


@pytest.mark.parametrize("rank", [1, 4, 32])
def test_a_step_of_l_moves_the_division_by_as_much_whatever_the_rank(rank: int) -> None:
    generator = torch.Generator().manual_seed(1)
    divisor = LowRankDivisor(torch.zeros(64, 256), rank, generator)
    with torch.no_grad():
        divisor.left += 0.01 * torch.randn(divisor.left.shape, generator=generator).sign()
    assert float(divisor().detach().square().mean().sqrt()) == pytest.approx(0.01, rel=0.2)


def test_division_hardly_moves_weights_near_zero_and_offsets_do() -> None:
    scheme = Scheme(bits=4, group_size=-1)
    division = make(scheme, "full", offsets=True)
    division().sum().backward()
    size = (weight_of(division) / division.start.scale[:, 0]).abs()
    near, far = size < 0.2, (size > 2) & (size < 5)
    by_division = division.divisor.entries.grad.abs() / division.start.scale[:, 0]
    by_offset = from_groups(division.offset.grad, IN).abs() / division.start.scale[:, 0]
    assert float(by_division[near].max()) < 0.2
    assert float(by_division[far].min()) > 2
    assert torch.equal(by_offset[near | far], torch.ones_like(by_offset[near | far]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_fixed_grid_with_outliers_keeps_its_scales(kind: str) -> None:
    scheme = Scheme(bits=3, group_size=8, round_zero=False, scale_bits=3, zero_bits=3, tile_rows=4)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(OUT, IN, generator=generator)
    start = joint_start(weight, scheme, None, search=True)
    outliers = Outliers.where(weight > 1.5, torch.randn(OUT, IN, generator=generator))
    divisor = FullDivisor(weight) if kind == "full" else LowRankDivisor(weight, 3, generator)
    division = LearnedDivision(
        weight, start, scheme, divisor=divisor, steps=StepSizes(0.01, None, 0.01), outliers=outliers
    )
    step_zero = outliers.add_to(start.quantize(weight, scheme).dequantize())
    assert torch.equal(division().detach(), step_zero)
    disturb(division, 1)
    exported = division.export()
    assert torch.equal(exported.dequantize(), division().detach())
    assert exported.scale == start.scale_level
    assert exported.outliers.equals(outliers)


def test_what_is_learned_is_counted_and_grouped() -> None:
    full = make(Scheme(bits=4, group_size=-1), "full", offsets=True)
    assert full.trained == 2 * OUT * IN + OUT + OUT  # S2 and V, s3, s1
    low = make(Scheme(bits=4, group_size=8), "low-rank", steps=StepSizes(0.01, 0.5))
    assert low.trained == 3 * (OUT + IN) + OUT + IN + OUT * IN // 8
    assert [group["lr"] for group in low.parameter_groups()] == [0.01, 0.5]
    assert [group["lr"] for group in full.parameter_groups()] == [0.01, 0.01, 0.01]


@pytest.mark.parametrize(
    ("rank", "shape", "wanted"),
    [(0.25, (64, 256), 16), (8, (64, 256), 8), (1024, (64, 256), 64), (1, (64, 256), 1), (0.001, (9, 9), 1)],
)
def test_rank_is_a_number_or_a_share(rank: int | float, shape: tuple[int, int], wanted: int) -> None:
    assert DivisionOptions(rank=rank).resolved_rank(shape) == wanted
