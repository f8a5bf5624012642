"""GPTQ and SpQR as mathematics, against independent implementations and laws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roundel.grid.scheme import Scheme
from roundel.methods.cholesky import SharedFactor
from roundel.methods.gptq import gptq
from roundel.methods.options import HessianOptions
from roundel.methods.rtn import make_start
from roundel.methods.spqr import spqr

SPQR = Scheme(bits=3, group_size=8, round_zero=False, scale_bits=3, zero_bits=3, tile_rows=4)
SCHEMES = {
    "groups": Scheme(bits=3, group_size=16),
    "channel": Scheme(bits=4, group_size=-1),
    "symmetric": Scheme(bits=3, group_size=16, sym=True),
    "two-level": SPQR,
    "ragged": Scheme(bits=3, group_size=20),
}


def problem(
    seed: int = 0, out: int = 24, width: int = 48, tokens: int = 400
) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and second moments of correlated inputs with a few large channels."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, width, generator=generator) @ torch.randn(width, width, generator=generator)
    inputs *= torch.rand(width, generator=generator).mul(3).exp() / 10
    weight = torch.randn(out, width, generator=generator)
    weight[torch.rand(out, width, generator=generator) < 0.01] *= 6
    return weight, inputs.T @ inputs / tokens


def output_error(weight: torch.Tensor, found: torch.Tensor, hessian: torch.Tensor) -> float:
    error = (weight - found).double()
    return float(((error @ hessian.double()) * error).sum())


def textbook(
    weight: torch.Tensor, hessian: torch.Tensor, scheme: Scheme, damping: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The paper's algorithm, column by column in float64, with the Cholesky factor of the inverse."""
    width = weight.shape[1]
    damped = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(width)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    present, found = weight.double().clone(), torch.empty_like(weight, dtype=torch.float64)
    codes = torch.empty_like(found)
    group = scheme.width(width)
    for j in range(width):
        if j % group == 0:
            start = make_start(present[:, j : j + group].float(), scheme, "minmax", None)
            scale, zero = start.scale[:, 0, 0].double(), start.stored_zero(scheme)[:, 0, 0].double()
        codes[:, j] = ((present[:, j] / scale).round() + zero).clamp(0, scheme.levels)
        found[:, j] = scale * (codes[:, j] - zero)
        error = (present[:, j] - found[:, j]) / upper[j, j]
        present[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
    return codes, found


@pytest.mark.parametrize("name", ["groups", "channel", "symmetric", "ragged"])
@pytest.mark.parametrize("seed", range(3))
def test_the_papers_algorithm(name: str, seed: int) -> None:
    weight, hessian = problem(seed)
    # Scales in full precision: rounding them would turn the last bit of a sum into a visible difference.
    scheme = SCHEMES[name].model_copy(update={"scale_dtype": "float32"})
    codes, wanted = textbook(weight, hessian, scheme, 0.05)
    found = gptq(weight, hessian, scheme, HessianOptions(order="identity", damping=0.05), "minmax")
    same = found.weight.codes == codes
    # A weight that lies between two codes may go either way in float32, and takes the rest of its row with it.
    assert same.all(1).float().mean() > 0.7
    assert same.float().mean() > 0.9
    assert output_error(weight, found.weight.dequantize(), hessian) == pytest.approx(
        output_error(weight, wanted, hessian), rel=0.05
    )


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("order", ["identity", "act_order", "group_aware", "spearman"])
def test_a_diagonal_hessian_leaves_plain_rounding(name: str, order: str) -> None:
    weight, hessian = problem()
    diagonal = hessian.diagonal()
    options = HessianOptions(order=order, static_groups=True)
    found = gptq(weight, torch.diag(diagonal), SCHEMES[name], options, "search").weight
    start = make_start(weight, SCHEMES[name], "search", diagonal)
    assert found.equals(start.quantize(weight, SCHEMES[name]))
    assert found.order is None


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("order", ["identity", "act_order", "group_aware", "spearman"])
def test_error_feedback_beats_plain_rounding(name: str, static: bool, order: str) -> None:
    weight, hessian = problem(1)
    scheme = SCHEMES[name]
    rtn = make_start(weight, scheme, "search", hessian.diagonal()).quantize(weight, scheme)
    options = HessianOptions(order=order, static_groups=static)
    found = gptq(weight, hessian, scheme, options, "search").weight
    assert output_error(weight, found.dequantize(), hessian) < 0.9 * output_error(
        weight, rtn.dequantize(), hessian
    )


def test_rows_are_problems_of_their_own() -> None:
    weight, hessian = problem(2, out=32)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(3))
    scheme, options = SCHEMES["groups"], HessianOptions()
    straight = gptq(weight, hessian, scheme, options, "search").weight.dequantize()
    shuffled = gptq(weight[order], hessian, scheme, options, "search").weight.dequantize()
    assert torch.equal(straight[order], shuffled)
    # With two-level statistics the unit is a tile of rows.
    tiles = order[:8] * 4
    rows = (tiles[:, None] % 32 + torch.arange(4)).flatten()
    straight = gptq(weight, hessian, SPQR, options, "search").weight.dequantize()
    shuffled = gptq(weight[rows], hessian, SPQR, options, "search").weight.dequantize()
    assert torch.equal(straight[rows], shuffled)


@pytest.mark.parametrize("order", ["act_order", "spearman"])
def test_an_order_across_groups_is_that_problem_with_its_columns_in_that_order(order: str) -> None:
    weight, hessian = problem(4)
    found = gptq(weight, hessian, SPQR, HessianOptions(order=order), "search").weight
    columns = found.order
    assert sorted(columns.tolist()) == list(range(48))
    moved = gptq(
        weight[:, columns], hessian[columns][:, columns], SPQR, HessianOptions(order="identity"), "search"
    ).weight
    assert torch.equal(found.codes, moved.codes)
    assert torch.equal(found.dequantize()[:, columns], moved.dequantize())


def test_columns_that_were_never_fed_are_rounded_to_nearest() -> None:
    weight, hessian = problem(5)
    hessian[7] = hessian[:, 7] = 0
    found = gptq(weight, hessian, SCHEMES["groups"], HessianOptions(), "search")
    assert torch.equal(found.compensated[:, 7], weight[:, 7])
    assert torch.isfinite(found.weight.dequantize()).all()
    everything_dead = gptq(
        weight, torch.zeros_like(hessian), SCHEMES["groups"], HessianOptions(), "minmax"
    ).weight
    assert everything_dead.equals(
        make_start(weight, SCHEMES["groups"], "minmax", None).quantize(weight, SCHEMES["groups"])
    )


@pytest.mark.parametrize("order", ["identity", "act_order", "group_aware", "spearman"])
def test_a_shared_factor_is_the_own_one(order: str) -> None:
    """Whatever was rounded before: by the same Hessian, by another, in another order or with other damping."""
    weight, hessian = problem(8)
    other, another = problem(9)
    scheme, options = SCHEMES["groups"], HessianOptions(order=order)
    shared = SharedFactor()
    for before, moments, how in (
        (other, hessian, options),
        (other, another, options),
        (other, hessian, HessianOptions(order="act_order" if order != "act_order" else "identity")),
        (other, hessian, HessianOptions(order=order, damping=0.5)),
    ):
        gptq(before, moments, scheme, how, "search", shared)
        alone = gptq(weight, hessian, scheme, options, "search")
        beside = gptq(weight, hessian, scheme, options, "search", shared)
        assert beside.weight.equals(alone.weight)
        assert torch.equal(beside.compensated, alone.compensated)


def test_what_each_column_was_rounded_from() -> None:
    weight, hessian = problem(6)
    found = gptq(weight, hessian, SCHEMES["groups"], HessianOptions(), "search")
    again = found.start.quantize(found.compensated, SCHEMES["groups"])
    assert again.equals(found.weight)


@pytest.mark.parametrize("changes", [{"outlier_threshold": 1e30}, {"outliers": 0.0}, {}])
@pytest.mark.parametrize("name", ["groups", "two-level"])
def test_without_outliers_spqr_is_grouped_gptq(changes: dict[str, float], name: str) -> None:
    weight, hessian = problem(7)
    found = spqr(weight, hessian, SCHEMES[name], HessianOptions(**changes), "search").weight
    assert found.equals(gptq(weight, hessian, SCHEMES[name], HessianOptions(), "search").weight)


@settings(max_examples=20)
@given(
    st.integers(0, 1000), st.floats(0.01, 5), st.floats(1.0, 4), st.booleans(),
    st.sampled_from(["groups", "channel", "two-level"]),
)  # fmt: skip
def test_a_higher_threshold_never_gives_more_outliers(
    seed: int, threshold: float, factor: float, simplified: bool, name: str
) -> None:
    weight, hessian = problem(seed, out=12, width=32)
    low, high = (
        spqr(
            weight, hessian, SCHEMES[name],
            HessianOptions(outlier_threshold=t, simplified_outliers=simplified), "search",
        ).weight
        for t in (threshold, threshold * factor)
    )  # fmt: skip
    assert high.outlier_share <= low.outlier_share


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("simplified", [False, True])
def test_outliers_pay(name: str, simplified: bool) -> None:
    weight, hessian = problem(8)
    errors = []
    for share in (0.0, 0.02, 0.1):
        found = spqr(
            weight, hessian, SCHEMES[name],
            HessianOptions(outliers=share, simplified_outliers=simplified and share > 0), "search",
        ).weight  # fmt: skip
        assert found.outlier_share == pytest.approx(share, abs=1 / weight.numel())
        errors.append(output_error(weight, found.dequantize(), hessian))
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize("order", ["group_aware", "act_order"])
def test_an_outlier_is_kept_to_sixteen_bits(order: str) -> None:
    weight, hessian = problem(9)
    found = spqr(weight, hessian, SPQR, HessianOptions(outliers=0.05, order=order), "search")
    outliers = found.weight.outliers
    mask = outliers.add_to(torch.zeros(weight.shape)) != 0
    if found.weight.order is not None:
        mask = torch.empty_like(mask).index_copy_(1, found.weight.order, mask)
    kept, wanted = found.weight.dequantize()[mask], found.compensated[mask]
    assert torch.allclose(kept, wanted, rtol=2e-3, atol=2e-3)
    # Compensation aside, these are the weights that a grid serves worst: the large ones.
    assert weight[mask].abs().mean() > 1.5 * weight.abs().mean()


@pytest.mark.parametrize("target", [6.2, 6.5, 7.5])
@pytest.mark.parametrize("order", ["group_aware", "act_order"])
def test_a_budget_is_kept(target: float, order: str) -> None:
    weight, hessian = problem(10, out=64, width=96)
    found = spqr(weight, hessian, SPQR, HessianOptions(target_bits=target, order=order), "search").weight
    assert target - 0.02 < found.bits_per_weight() <= target


def test_leaving_one_out_saves_what_it_saves() -> None:
    """Every member tried, against the three fits that the method makes."""
    from roundel.methods.gptq import ErrorFeedback
    from roundel.methods.leave_one_out import OutlierScores

    weight, hessian = problem(11, out=8, width=16)
    scheme = Scheme(bits=3, group_size=8, round_zero=False, scale_dtype="float32")
    loop = ErrorFeedback(
        weight, hessian, scheme, HessianOptions(order="identity", static_groups=True), "minmax"
    )
    found = OutlierScores(loop, simplified=False).values.T  # [out, in]

    def error(values: torch.Tensor, fitted_to: torch.Tensor, importance: torch.Tensor) -> float:
        scale = float(fitted_to.max() - fitted_to.min()) / 7
        zero = -float(fitted_to.min()) / scale
        codes = (values / scale + zero).round().clamp(0, 7)
        return float(((scale * (codes - zero) - values).square() * importance).sum())

    for row in range(8):
        for group in (slice(0, 8), slice(8, 16)):
            values, importance = weight[row, group], loop.importance[group]
            for k in range(8):
                rest = torch.arange(8) != k
                saved = error(values, values, importance) - error(
                    values[rest], values[rest], importance[rest]
                )
                assert float(found[row, group][k]) == pytest.approx(
                    saved, rel=1e-3, abs=1e-3 * float(importance.mean())
                )


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_groups_that_are_mostly_outliers_stay_sound(share: float) -> None:
    """Inputs of few dimensions, sparse weights: most of a group may be taken out, and what is left be flat."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 4, generator=generator) @ torch.randn(4, 64, generator=generator)
    hessian = inputs.T @ inputs / 300
    weight = torch.randn(32, 64, generator=generator)
    weight[:, ::2] *= 1e-6
    errors = []
    for outliers in (0.0, share):
        found = spqr(weight, hessian, SPQR, HessianOptions(outliers=outliers), "search").weight.dequantize()
        assert found.abs().max() < 4 * weight.abs().max()
        errors.append(output_error(weight, found, hessian))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("group", [16, -1])
def test_grids_fitted_before_the_loop_do_without_the_outliers_too(group: int) -> None:
    weight, hessian = problem(12)
    weight[:, 5] = 40.0  # would stretch every grid that it is on
    scheme = Scheme(bits=4, group_size=group)
    options = HessianOptions(static_groups=True, outliers=1 / 48)
    found = spqr(weight, hessian, scheme, options, "minmax").weight
    rows = (found.outliers.add_to(torch.zeros(weight.shape)) != 0)[:, 5]
    assert rows.float().mean() > 0.7
    stretched = gptq(weight, hessian, scheme, HessianOptions(static_groups=True), "minmax").weight
    ratio = found.scale[:, 0].float() / stretched.scale[:, 0].float()
    assert (ratio[rows] < 0.5).all()
    assert (ratio[~rows] > 0.5).all()
