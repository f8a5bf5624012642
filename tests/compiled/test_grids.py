"""Kernels of learned rounding and of searches find the bits that torch's operators find, by every instruction set."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from roundel.compiled import grids
from roundel.compiled.extension import instruction_sets
from roundel.grid.affine import minmax_start
from roundel.grid.best_grid import choose_grids, sum_codes
from roundel.grid.groups import to_groups
from roundel.grid.scheme import Scheme
from roundel.grid.search import searched_start
from roundel.methods.learned_rounding import descend, round_learned

SETS = [pytest.param(name, id=name) for name in instruction_sets() or ["none"]]
pytestmark = pytest.mark.skipif(not instruction_sets(), reason="this installation has no kernels")

# Integer zero points, real ones, none, and minima; groups that fill vectors, that do not, rows that do not fill groups.
KINDS = {
    "integers": Scheme(bits=3, group_size=64),
    "narrow": Scheme(bits=4, group_size=12),
    "symmetric": Scheme(bits=2, group_size=32, sym=True),
    "real": Scheme(bits=4, group_size=16, round_zero=False),
    "minima": Scheme(type="q4_1"),
    "row": Scheme(bits=8, group_size=-1),
}
SHAPES = [(1, 96), (7, 160), (33, 224), (64, 1056)]


@contextmanager
def by_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(grids, "serve", lambda *args, **kwargs: False)
        yield


class Case:
    """Random weights of heavy tails, their grid, offsets and the gradient of what is rounded."""

    def __init__(self, scheme: Scheme, shape: tuple[int, int], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> torch.Tensor:
            return torch.randn(size, generator=generator)

        self.scheme, self.width = scheme, shape[1]
        weight = normal(*shape) * torch.exp(normal(*shape))
        weight[0, ::3] = 0
        self.groups = to_groups(weight, scheme)
        start = minmax_start(weight, scheme)
        # Ranges that clip.
        self.scale = scheme.round_scale(start.scale * torch.exp(0.3 * normal(*start.scale.shape)))
        self.zero = (
            weight.min() * torch.rand_like(start.scale) if scheme.minima else start.stored_zero(scheme)
        )
        self.offset = 0.4 * normal(*self.groups.shape)
        self.gradient = normal(*shape)
        self.gradient[:, ::5] = 0
        self.importance = normal(1, *self.groups.shape[1:]).square()
        factors = 0.6 + 0.1 * torch.arange(7)
        self.scales = scheme.round_scale(self.scale * factors[:, None, None, None])
        self.zeros = self.zero.expand_as(self.scales)


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def scheme(request: pytest.FixtureRequest) -> Scheme:
    return request.param


@pytest.fixture(params=SHAPES, ids=str)
def case(scheme: Scheme, request: pytest.FixtureRequest) -> Case:
    return Case(scheme, request.param, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("instructions", SETS)
def test_rounding(case: Case, dtype: torch.dtype, instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = (case.groups, case.scale, case.zero)
    with by_torch(monkeypatch):
        wanted = round_learned(*args, case.scheme, case.offset, case.width, dtype)
    found = grids.round_learned(*args, case.offset, case.scheme, case.width, dtype, instructions)
    assert wanted.dtype == found.dtype == dtype
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("instructions", SETS)
def test_descent(case: Case, dtype: torch.dtype, instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient, step = case.gradient.to(dtype), 0.005
    args = (case.groups, case.scale, case.zero)
    wanted, found = case.offset.clone(), case.offset.clone()
    with by_torch(monkeypatch):
        of_ranges = descend(*args, case.scheme, wanted, gradient, step, ranges=True)
    theirs = grids.descend(
        *args, found, case.scheme, gradient, step, ranges=True, instruction_set=instructions
    )
    assert torch.equal(found, wanted)
    assert not torch.equal(found, case.offset)
    assert all(torch.equal(a, b) for a, b in zip(of_ranges, theirs, strict=True))
    alone = case.offset.clone()
    assert descend(*args, case.scheme, alone, gradient, step, ranges=False) is None
    assert torch.equal(alone, wanted)


@pytest.mark.parametrize("instructions", SETS)
def test_choosing(case: Case, instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    present = torch.full_like(case.scale, torch.inf)
    with by_torch(monkeypatch):
        first = present.clone()
        choose_grids(case.groups, case.importance, case.scheme, case.scales[:1], case.zeros[:1], first)
        wanted_error = first.clone()
        wanted = choose_grids(
            case.groups, case.importance, case.scheme, case.scales, case.zeros, wanted_error
        )
    found_error = first.clone()
    found = grids.choose_grids(
        case.groups, case.importance, case.scheme, case.scales, case.zeros, found_error, instructions
    )
    assert torch.equal(found, wanted)
    assert torch.equal(found_error, wanted_error)


@pytest.mark.parametrize("instructions", SETS)
def test_sums_of_codes(case: Case, instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = (case.groups, case.importance, case.scheme, case.scale, case.zero)
    with by_torch(monkeypatch):
        wanted = sum_codes(*args)
    found = grids.sum_codes(*args, instructions)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


SEARCHED = {
    "integers": Scheme(bits=3, group_size=64),
    "narrow": Scheme(bits=4, group_size=12),
    "row": Scheme(bits=8, group_size=-1),
    "bfloat16": Scheme(bits=2, group_size=32, scale_dtype="bfloat16"),
    "float32": Scheme(bits=4, group_size=128, scale_dtype="float32"),
    "real": Scheme(bits=4, group_size=16, round_zero=False),
    "symmetric": Scheme(bits=3, group_size=32, sym=True),
    "classic": Scheme(bits=4, group_size=64, sym=True, sym_range="classic"),
}


@pytest.mark.parametrize("size", [1e-38, 1e-9, 1e-6, 1, 1e6, 1e37, 0])
@pytest.mark.parametrize("scheme", SEARCHED.values(), ids=SEARCHED.keys())
def test_the_search(scheme: Scheme, size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # Sizes whose scales the type can hardly say, or not at all: they are rounded and bounded alike.
    case = Case(scheme, (33, 224), 2)
    weight = case.groups.flatten(1)[:, :224] * size
    diagonal = case.gradient[0].square()
    for importance in (diagonal, None):
        with by_torch(monkeypatch):
            wanted = searched_start(weight, scheme, importance)
        found = searched_start(weight, scheme, importance)
        assert torch.equal(found.scale, wanted.scale)
        assert torch.equal(found.zero, wanted.zero)


@pytest.mark.parametrize("instructions", SETS)
def test_the_search_by_every_instruction_set(instructions: str) -> None:
    case = Case(SEARCHED["integers"], (33, 224), 3)
    tries = grids.GridTries(torch.float16, (1.4, 1.0, 0.7), (0.9, 1.0, 1.1), zeros=True, rounds=2)
    args = (case.groups, case.importance, case.scheme, case.scale, case.zero, tries)
    for found, wanted in zip(
        grids.search_grids(*args, instructions), grids.search_grids(*args, "portable"), strict=True
    ):
        assert torch.equal(found, wanted)
    assert not torch.equal(grids.search_grids(*args, instructions)[0], case.scale)


def test_threads_change_nothing(scheme: Scheme) -> None:
    case, before = Case(scheme, (65, 1056), 1), torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            offset = case.offset.clone()
            ranges = descend(
                case.groups, case.scale, case.zero, scheme, offset, case.gradient, 0.01, ranges=True
            )
            results.append((offset, *ranges))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_what_is_no_group_is_refused() -> None:
    case = Case(KINDS["integers"], (7, 160), 0)
    with pytest.raises(ValueError, match="is expected"):
        grids.round_learned(
            case.groups, case.scale[:-1], case.zero, case.offset, case.scheme, case.width, torch.float32
        )
    with pytest.raises(ValueError, match="is expected"):
        grids.descend(
            case.groups, case.scale, case.zero, case.offset.double(), case.scheme, case.gradient, 0.1,
            ranges=False,
        )  # fmt: skip
