from pathlib import Path

import pytest
import torch
from torch import nn

from roundel.engine.smoothing import smooth_block
from roundel.model.blocks import find_blocks
from roundel.model.capture import BlockRunner
from roundel.model.linears import linears_in

pytestmark = pytest.mark.slow("tunes over four architectures")


def noting(largest: dict[str, torch.Tensor], name: str):
    def note(module, args) -> None:
        largest[name] = args[0].abs().flatten(0, -2).amax(0)

    return note


@torch.no_grad()
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_the_model_stays_the_same_function(any_model: Path, load_model, exponent: float) -> None:
    model, _ = load_model(any_model)
    tokens = torch.randint(1000, (6, 40), generator=torch.Generator().manual_seed(0))
    logits = model(tokens).logits
    stack = find_blocks(model)
    runner = BlockRunner(model, stack, tokens)
    hidden = next(runner.first_inputs(6))
    for index in range(len(stack)):
        views = stack.linears(index)
        before = {view.name: view.weight.clone() for view in views}
        largest: dict[str, torch.Tensor] = {}
        hooks = [view.module.register_forward_pre_hook(noting(largest, view.name)) for view in views]
        run = lambda index=index, hidden=hidden: runner.run(index, hidden)  # noqa: E731
        out = run()
        old = dict(largest)
        said = smooth_block(stack.blocks[index], views, run, run, exponent)
        run()
        for hook in hooks:
            hook.remove()
        assert set(said) == {view.name for view in views}
        smoothed = [view for view in views if said[view.name].done]
        assert len(smoothed) >= 2
        for view in views:
            if view in smoothed:
                # The inputs shrink by s, the weights grow by it.
                ratio = old[view.name] / largest[view.name].clamp_min(1e-12)
                assert torch.allclose(view.weight, before[view.name] * ratio, rtol=1e-3, atol=1e-6)
                if exponent == 1.0:
                    assert torch.allclose(largest[view.name], torch.ones_like(ratio), rtol=1e-3)
            else:
                assert not said[view.name].done
                assert torch.equal(view.weight, before[view.name])
        hidden = out
    assert torch.allclose(model(tokens).logits, logits, atol=2e-3)


class Norm(nn.Module):
    """RMS norm that multiplies by `origin + weight`; Gemma's origin is 1."""

    def __init__(self, origin: float) -> None:
        super().__init__()
        self.origin = origin
        self.weight = nn.Parameter(torch.rand(16) + 0.5 - origin)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True)) * (self.origin + self.weight)


class Block(nn.Module):
    def __init__(self, origin: float, shared: bool) -> None:
        super().__init__()
        self.norm, self.up, self.down = Norm(origin), nn.Linear(16, 32), nn.Linear(32, 16)
        self.shared = shared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        return self.down(torch.relu(self.up(normed))) + (normed if self.shared else x)


@torch.no_grad()
@pytest.mark.parametrize("origin", [0.0, 1.0])
@pytest.mark.parametrize("shared", [False, True])
def test_a_fold_that_changes_the_block_is_taken_back(origin: float, shared: bool) -> None:
    torch.manual_seed(0)
    block = Block(origin, shared)
    x = torch.randn(4, 10, 16) * torch.rand(16) * 5
    wanted, weight = block(x), block.up.weight.clone()
    views = linears_in(block, "b")
    said = smooth_block(block, views, lambda: block(x), lambda: block(x), 0.5)
    assert torch.allclose(block(x), wanted, atol=1e-4)
    assert said["b.down"].summary == "not smoothed: no norm before it"
    if shared:
        assert said["b.up"].summary == "not smoothed: norm feeds more than these Linears"
        assert torch.equal(block.up.weight, weight)
    else:
        assert said["b.up"].summary == "smoothed into norm"
        assert not torch.allclose(block.up.weight, weight)
