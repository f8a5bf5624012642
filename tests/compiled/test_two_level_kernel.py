"""Kernels for grids on two levels find the bits that torch's operators find, by every instruction set."""

import functools
from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

from roundel.compiled import two_level as kernel
from roundel.compiled.extension import instruction_sets
from roundel.grid.joint import joint_start, joint_tries
from roundel.grid.scheme import Scheme
from roundel.grid.two_level import equal
from roundel.methods import leave_one_out
from roundel.methods.gptq import ErrorFeedback
from roundel.methods.options import HessianOptions

T = TypeVar("T")

SETS = [pytest.param(name, id=name) for name in instruction_sets() or ["none"]]
pytestmark = pytest.mark.skipif(not instruction_sets(), reason="this installation has no kernels")

SCHEMES = {
    "of the paper": Scheme(bits=3, group_size=16, round_zero=False, scale_bits=3, zero_bits=3),
    "symmetric zeros": Scheme(
        bits=2,
        group_size=20,
        round_zero=False,
        scale_bits=4,
        zero_bits=2,
        zero_sym=True,
        scale_dtype="bfloat16",
    ),
    "fine statistics": Scheme(
        bits=4, group_size=5, round_zero=False, scale_bits=8, zero_bits=7, scale_dtype="float32"
    ),
    "tall tiles": Scheme(bits=3, group_size=16, round_zero=False, scale_bits=4, zero_bits=4, tile_rows=32),
    "whole rows": Scheme(bits=3, group_size=-1, round_zero=False, scale_bits=8, zero_bits=6),
}


def random_weight(kind: str, out: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(out)
    weight = torch.randn(out, width, generator=generator) * torch.rand(out, 1, generator=generator).exp()
    if kind == "of few values":
        weight = (2 * weight).round() / 2
        weight[: out // 3] = 0.25  # rows of one value
    if kind == "tiny":
        weight *= 1e-9
    return weight


def outlier_scores(weight: torch.Tensor, hessian: torch.Tensor, scheme: Scheme, fitted: str) -> torch.Tensor:
    loop = ErrorFeedback(weight, hessian, scheme, HessianOptions(), fitted)
    scores = leave_one_out.OutlierScores(loop, simplified=False)
    loop.watch(scores.add)
    return scores.values


def both(instructions: str, monkeypatch: pytest.MonkeyPatch, make: Callable[[], T]) -> tuple[T, T]:
    """What is made by the kernels of one instruction set, and by torch's operators."""
    with monkeypatch.context() as patch:
        for name in ("fit", "leave_one_out"):
            by_set = functools.partial(getattr(kernel, name), instruction_set=instructions)
            patch.setattr(kernel, name, by_set)
        found = make()
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "serve", lambda *args: False)
        return found, make()


@pytest.mark.parametrize("search", [False, True], ids=["nearest", "searched"])
@pytest.mark.parametrize("kind", ["normal", "of few values", "tiny"])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
@pytest.mark.parametrize("instructions", SETS)
def test_the_same_grids(
    instructions: str, scheme: Scheme, kind: str, search: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for out in (1, 16, 77):
        weight = random_weight(kind, out, 45)
        diagonal = torch.rand(45, generator=torch.Generator().manual_seed(1))
        make = functools.partial(joint_start, weight, scheme, diagonal, search=search)
        found, wanted = both(instructions, monkeypatch, make)
        assert torch.equal(found.scale, wanted.scale)
        assert torch.equal(found.zero, wanted.zero)
        assert equal(found.scale_level, wanted.scale_level)
        assert equal(found.zero_level, wanted.zero_level)


@pytest.mark.parametrize("fitted", ["minmax", "search"])
@pytest.mark.parametrize("kind", ["normal", "of few values"])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
@pytest.mark.parametrize("instructions", SETS)
def test_the_same_outliers(
    instructions: str, scheme: Scheme, kind: str, fitted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for out in (1, 48, 77):
        weight = random_weight(kind, out, 45)
        inputs = torch.randn(100, 45, generator=torch.Generator().manual_seed(2))
        hessian = inputs.t() @ inputs / 100
        found, wanted = both(
            instructions, monkeypatch, functools.partial(outlier_scores, weight, hessian, scheme, fitted)
        )
        assert bool((found != 0).any())
        assert torch.equal(found, wanted)


def test_what_kernels_cannot_read_is_refused() -> None:
    scheme, tries = SCHEMES["of the paper"], joint_tries(SCHEMES["of the paper"], search=True)
    columns, one = torch.randn(16, 32), torch.ones(16)
    grid = torch.ones(32), torch.zeros(32)
    for wrong in (columns.t(), columns.double(), columns[:, ::2]):
        with pytest.raises(ValueError, match="is expected"):
            kernel.fit(wrong, one, scheme, tries)
    with pytest.raises(ValueError, match="is expected"):
        kernel.fit(columns, one[:3], scheme, tries)
    with pytest.raises(ValueError, match="is expected"):
        kernel.leave_one_out(columns, one, scheme, tries, one, torch.ones(31), grid[1])
    with pytest.raises(ValueError, match="no rest"):
        kernel.leave_one_out(columns[:2], one[:2], scheme, tries, one[:2], *grid)


def test_other_grids_are_left_to_torch() -> None:
    columns = torch.randn(16, 32)
    for settings in ({"tile_rows": 8}, {"zero_bits": None}, {"scale_bits": None}):
        scheme = SCHEMES["of the paper"].model_copy(update=settings)
        assert not kernel.serve(columns, scheme)
    assert not kernel.serve(columns.to("meta"), SCHEMES["of the paper"])
