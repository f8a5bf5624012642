"""A training step in one pass is the step that autograd and an optimizer make."""

import pytest
import torch

from roundel.compiled import grids
from roundel.grid.outliers import Outliers
from roundel.grid.scheme import Scheme
from roundel.methods.optimizer import make_optimizer
from roundel.methods.rtn import make_start
from roundel.methods.signround import RoundingOffsets

SCHEMES = [
    Scheme(bits=3, group_size=16),
    Scheme(bits=4, group_size=20),
    Scheme(bits=2, group_size=-1, sym=True),
    Scheme(type="q4_1"),
]


def make(scheme: Scheme, *, outliers: bool) -> tuple[RoundingOffsets, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(9, 96, generator=generator)
    beside = Outliers.where(weight > 1.5, torch.randn(9, 96, generator=generator)) if outliers else None
    start = make_start(weight, scheme, "minmax", None)
    offsets = RoundingOffsets(
        weight, start, scheme, lr=0.02, minmax_lr=0.01, minmax_limit=2.0, outliers=beside
    )
    with torch.no_grad():
        offsets.offset += 0.4 * torch.randn(offsets.offset.shape, generator=generator)
        offsets.high += 0.1 * torch.randn(offsets.high.shape, generator=generator)
    return offsets, torch.randn(9, 96, generator=generator)


@pytest.fixture(params=["kernels", "torch"])
def _computed_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(grids, "serve", lambda *args, **kwargs: False)


@pytest.mark.usefixtures("_computed_by")
@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("optimizer", ["signsgd", "adamw"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_step_is_autograds(scheme: Scheme, optimizer: str, outliers: bool) -> None:
    ours, gradient = make(scheme, outliers=outliers)
    theirs, _ = make(scheme, outliers=outliers)
    ours_moves = make_optimizer(optimizer, ours.parameter_groups())
    theirs_moves = make_optimizer(optimizer, theirs.parameter_groups())
    for _ in range(3):
        weight = theirs()
        assert torch.equal(ours.begin_step(torch.float32), weight.detach())
        weight.backward(gradient)
        ours.end_step(gradient, ours_moves)
        for moves in (ours_moves, theirs_moves):
            moves.step()
            moves.zero_grad()
        for name, found in ours.state_dict().items():
            assert torch.equal(found, theirs.state_dict()[name]), name
    assert not torch.equal(ours.offset, make(scheme, outliers=outliers)[0].offset)


@pytest.mark.usefixtures("_computed_by")
@pytest.mark.parametrize("outliers", [False, True])
def test_weights_have_the_type_that_is_asked_for(outliers: bool) -> None:
    offsets, _ = make(SCHEMES[0], outliers=outliers)
    weight = offsets.begin_step(torch.bfloat16)
    assert torch.equal(weight, offsets().detach().to(torch.bfloat16))
