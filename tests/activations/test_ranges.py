import pytest
import torch

from roundel.activations.options import ActivationOptions
from roundel.activations.ranges import RangeObserver
from roundel.activations.rounding import quantize_static


def observed(x: torch.Tensor, parts: int = 1) -> RangeObserver:
    observer = RangeObserver()
    for part in x.chunk(parts):
        observer.extremes(part)
    for part in x.chunk(parts):
        observer.count(part)
    return observer


def heavy_tailed(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 100, generator=generator) + 0.5
    x[::37, ::11] *= 30
    return x


def options(rule: str, sym: bool = False, **more: object) -> ActivationOptions:
    return ActivationOptions(act_bits=8, act_sym=sym, act_scale="static", act_range=rule, **more)


def test_minmax_spans_everything() -> None:
    x = heavy_tailed()
    grid = observed(x).grid(options("minmax"))
    assert grid.scale * 255 == pytest.approx(float(x.max() - x.min()), rel=1e-6)
    scheme = options("minmax").activations.inputs
    assert float((quantize_static(x, grid, scheme) - x).abs().max()) <= grid.scale


@pytest.mark.parametrize("share", [90.0, 99.0])
def test_percentile_cuts_the_tails(share: float) -> None:
    x = heavy_tailed()
    grid = observed(x).grid(options("percentile", act_percentile=share))
    lo, hi = x.quantile(1 - share / 100), x.quantile(share / 100)
    bin_width = float(x.max() - x.min()) / 4096
    assert grid.scale * 255 == pytest.approx(float(hi - lo), abs=2 * bin_width)


@pytest.mark.parametrize("sym", [False, True])
def test_least_squared_error_beats_minmax(sym: bool) -> None:
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    errors = {}
    for rule in ("minmax", "mse"):
        chosen = ActivationOptions(act_bits=4, act_sym=sym, act_scale="static", act_range=rule)
        rounded = quantize_static(x, observed(x).grid(chosen), chosen.activations.inputs)
        errors[rule] = float((rounded - x).square().mean())
    assert errors["mse"] < 0.7 * errors["minmax"]


@pytest.mark.parametrize("rule", ["minmax", "percentile", "mse"])
def test_parts_give_the_grid_of_the_whole(rule: str) -> None:
    x = heavy_tailed()
    assert observed(x, 7).grid(options(rule)) == observed(x).grid(options(rule))


@pytest.mark.parametrize("rule", ["minmax", "percentile", "mse"])
def test_nothing_but_zeros_has_a_grid(rule: str) -> None:
    zeros = torch.zeros(3, 4)
    grid = observed(zeros).grid(options(rule))
    assert torch.equal(quantize_static(zeros, grid, options(rule).activations.inputs), zeros)
