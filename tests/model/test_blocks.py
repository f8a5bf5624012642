from pathlib import Path

import pytest
import torch
from torch import nn

from roundel.errors import ModelError
from roundel.model.blocks import find_blocks, linears_outside
from roundel.model.linears import LinearView, linears_in
from zoo import LAYERS

LINEARS = {"llama": 7, "opt": 6, "bloom": 4, "gpt2": 4}
STACKS = {
    "llama": "model.layers",
    "opt": "model.decoder.layers",
    "bloom": "transformer.h",
    "gpt2": "transformer.h",
}


def test_decoder_blocks_are_found(any_model: Path, load_model) -> None:
    model, _ = load_model(any_model)
    stack = find_blocks(model)
    assert stack.name == STACKS[any_model.name]
    assert len(stack) == LAYERS
    for index in range(LAYERS):
        views = stack.linears(index)
        assert len(views) == LINEARS[any_model.name]
        assert all(model.get_submodule(view.name) is view.module for view in views)
    assert [view.name for view in linears_outside(model, stack)] == ["lm_head"]


def test_experts_inside_a_block_are_not_taken_for_the_stack() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(64, 64) for _ in range(8))

    model = nn.Sequential()
    model.add_module("layers", nn.ModuleList([Block(), Block()]))
    model.add_module("adapters", nn.ModuleList([nn.Linear(8, 8)]))
    assert find_blocks(model).name == "layers"


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ModelError, match="no stack of decoder blocks in Sequential"):
        find_blocks(nn.Sequential(nn.Linear(2, 2)))


class Tower(nn.Module):
    """Two stacks, and blocks that are no list's members."""

    def __init__(self, other: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(3))
        self.second = nn.ModuleList(nn.Sequential(nn.Linear(16, 16)) for _ in range(other))
        self.step_a = nn.Sequential(nn.Linear(4, 4))
        self.step_b = nn.Sequential(nn.Linear(4, 4))
        self.step_norm = nn.LayerNorm(4)


def test_two_stacks_of_like_weight_are_a_question() -> None:
    assert find_blocks(Tower(1)).name == "first"
    with pytest.raises(
        ModelError, match=r"several lists in Tower .* first \(768 weights\), second .*--blocks"
    ):
        find_blocks(Tower(2))
    assert find_blocks(Tower(7)).name == "second"


def test_blocks_can_be_named() -> None:
    tower = Tower(2)
    assert find_blocks(tower, "second").names == ("second.0", "second.1")
    assert find_blocks(tower, "first.*").names == ("first.0", "first.1", "first.2")
    stack = find_blocks(tower, "step_*")
    assert stack.names == ("step_a", "step_b")
    assert stack.blocks == (tower.step_a, tower.step_b)
    assert [view.name for view in stack.linears(1)] == ["step_b.0"]
    assert stack.holds("step_a.0.weight")
    assert not stack.holds("step_norm.weight")
    with pytest.raises(ModelError, match=r"named like 'step_norm'.*first \(3 modules\)"):
        find_blocks(tower, "step_norm")


def test_a_dictionary_around_everything_is_not_the_stack() -> None:
    """As small models of one's own are often written."""
    model = nn.Module()
    model.transformer = nn.ModuleDict(
        {"wte": nn.Embedding(10, 8), "h": nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(2))}
    )
    assert find_blocks(model).name == "transformer.h"


def test_a_linear_of_somebodys_own_is_a_linear() -> None:
    class Projection(nn.Module):
        def __init__(self, width: int, height: int) -> None:
            super().__init__()
            self.in_features, self.out_features = width, height
            self.weight = nn.Parameter(torch.randn(height, width))

    block = nn.Sequential(Projection(6, 4), nn.Embedding(4, 6), nn.LayerNorm(6))
    assert [(view.name, view.shape) for view in linears_in(block, "b")] == [("b.0", (4, 6))]


def test_a_view_reads_and_writes_out_by_in(gpt2: Path, load_model) -> None:
    model, _ = load_model(gpt2)
    view = LinearView("c_attn", model.transformer.h[0].attn.c_attn)
    assert view.shape == (3 * 96, 96)
    inputs = torch.randn(2, 96, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(view.module(inputs), inputs @ view.weight.T + view.module.bias, atol=1e-5)
    wanted = torch.randn(3 * 96, 96)
    view.write(wanted)
    assert torch.equal(model.transformer.h[0].attn.c_attn.weight, wanted.T)
