"""Every method on the grids of GGUF's types: the same laws as on grids of our own."""

import pytest
import torch

from roundel.grid.affine import QParams
from roundel.grid.block_bytes import from_bytes, to_bytes
from roundel.grid.block_types import BLOCK_TYPES
from roundel.grid.scheme import Scheme
from roundel.methods.division import FullDivisor, LearnedDivision, StepSizes
from roundel.methods.gptq import gptq
from roundel.methods.options import HessianOptions
from roundel.methods.parametrization import Parametrization
from roundel.methods.rtn import make_start
from roundel.methods.signround import RoundingOffsets

TYPES = sorted(BLOCK_TYPES)
OUT, IN = 6, 512


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and second moments of correlated inputs with a few large channels."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(2 * IN, IN, generator=generator)
    inputs = inputs + inputs @ torch.randn(IN, IN, generator=generator) / 16
    inputs *= torch.rand(IN, generator=generator).mul(3).exp() / 10
    weight = torch.randn(OUT, IN, generator=generator) * 0.05
    weight[torch.rand(OUT, IN, generator=generator) < 0.01] *= 6
    return weight, inputs.T @ inputs / len(inputs)


def parametrize(kind: str, weight: torch.Tensor, start: QParams, scheme: Scheme) -> Parametrization:
    if kind == "autoround":
        return RoundingOffsets(weight, start, scheme, lr=0.01, minmax_lr=0.01, minmax_limit=2.0)
    return LearnedDivision(
        weight, start, scheme, divisor=FullDivisor(weight), steps=StepSizes(0.01, 0.01, 0.01)
    )


def disturb(parametrization: Parametrization) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in parametrization.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    parametrization.project()


def weighted_error(weight: torch.Tensor, found: torch.Tensor, hessian: torch.Tensor) -> float:
    error = (weight - found).double()
    return float(((error @ hessian.double()) * error).sum())


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("kind", ["autoround", "division"])
def test_tuning_begins_at_rounding_to_nearest_and_exports_what_is_tuned(name: str, kind: str) -> None:
    scheme, (weight, hessian) = Scheme(type=name), problem()
    start = make_start(weight, scheme, "search", hessian.diagonal())
    rounded = start.quantize(weight, scheme)
    tuned = parametrize(kind, weight, start, scheme)
    assert tuned.export().equals(rounded)
    assert torch.equal(tuned().detach(), rounded.dequantize())
    disturb(tuned)
    exported = tuned.export()
    assert not torch.equal(exported.dequantize(), rounded.dequantize())
    assert torch.equal(exported.dequantize(), tuned().detach())
    # All that was tuned is in the bytes.
    assert from_bytes(to_bytes(exported), name).equals(exported)


@pytest.mark.parametrize("name", TYPES)
def test_gradients_are_those_of_the_straight_through_surrogate(name: str) -> None:
    """Autograd through the formula with every rounding replaced by its offset at the present point."""
    scheme, (weight, _) = Scheme(type=name), problem(1)
    start = make_start(weight, scheme, "minmax", None)
    tuned = parametrize("autoround", weight, start, scheme)
    assert isinstance(tuned, RoundingOffsets)
    disturb(tuned)
    direction = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(5))
    (tuned() * direction).sum().backward()

    n, rows = scheme.levels, tuned.groups.double()
    stored_scale, stored_zero = (x.double() for x in tuned.grid())
    v, low, high = (p.detach().double().requires_grad_() for p in (tuned.offset, tuned.low, tuned.high))
    if scheme.minima:
        m0, s0 = start.zero.double(), start.scale.double()
        m, s = low * m0, ((m0 + n * s0) * high - low * m0) / n
        m = m + (stored_zero - m).detach()
        s = s + (stored_scale - s).detach()
        place = rows / s + v - m / s
    else:
        s = start.scale.double() * high
        s, m = s + (stored_scale - s).detach(), stored_zero
        place = rows / s + v + m
    code = tuned.export().codes.view(tuned.groups.shape).double()
    inside = (place.round() >= 0) & (place.round() <= n)
    code = torch.where(inside, place + (code - place).detach(), code)
    value = s * code + m if scheme.minima else s * (code - m)
    (value * direction.double().view_as(value)).sum().backward()
    for found, wanted in ((tuned.offset, v), (tuned.low, low), (tuned.high, high)):
        if found.requires_grad:
            torch.testing.assert_close(found.grad.double(), wanted.grad, rtol=1e-3, atol=1e-4)
    assert scheme.minima == (tuned.low.grad is not None)


@pytest.mark.parametrize("name", TYPES)
def test_a_search_lowers_the_error_and_more_so_where_it_counts(name: str) -> None:
    scheme, (weight, hessian) = Scheme(type=name), problem(2)
    diagonal = hessian.diagonal()

    def error(start: QParams) -> float:
        return float(((start.quantize(weight, scheme).dequantize() - weight).square() * diagonal).sum())

    spanning = make_start(weight, scheme, "minmax", None)
    even, weighted = (make_start(weight, scheme, "search", d) for d in (None, diagonal))
    assert error(weighted) < error(even) < error(spanning)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("order", ["identity", "group_aware"])
@pytest.mark.parametrize("static", [False, True])
def test_error_feedback_beats_plain_rounding_and_fits_into_the_bytes(
    name: str, order: str, static: bool
) -> None:
    scheme, (weight, hessian) = Scheme(type=name), problem(3)
    plain = make_start(weight, scheme, "search", hessian.diagonal()).quantize(weight, scheme)
    options = HessianOptions(order=order, static_groups=static)
    found = gptq(weight, hessian, scheme, options, "search")
    assert weighted_error(weight, found.weight.dequantize(), hessian) < 0.9 * weighted_error(
        weight, plain.dequantize(), hessian
    )
    assert from_bytes(to_bytes(found.weight), name).equals(found.weight)
    # The grid with which tuning would begin is the one of the codes.
    assert found.start.stored_scale(scheme) is not None
    again = found.start.quantize(found.compensated, scheme)
    assert (again.codes == found.weight.codes).float().mean() > 0.999


@pytest.mark.parametrize("name", ["q4_k", "q3_k", "q6_k"])
def test_rows_are_problems_of_their_own(name: str) -> None:
    scheme, (weight, hessian) = Scheme(type=name), problem(4)
    options = HessianOptions()
    whole = gptq(weight, hessian, scheme, options, "search").weight.dequantize()
    part = gptq(weight[:3], hessian, scheme, options, "search").weight.dequantize()
    torch.testing.assert_close(whole[:3], part, rtol=1e-3, atol=1e-3)
