from pathlib import Path

import pytest
import torch
from torch import nn

from roundel.errors import ModelError
from roundel.model.blocks import find_blocks, linears_outside
from roundel.model.linears import LinearView
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


def test_a_view_reads_and_writes_out_by_in(gpt2: Path, load_model) -> None:
    model, _ = load_model(gpt2)
    view = LinearView("c_attn", model.transformer.h[0].attn.c_attn)
    assert view.shape == (3 * 96, 96)
    inputs = torch.randn(2, 96, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(view.module(inputs), inputs @ view.weight.T + view.module.bias, atol=1e-5)
    wanted = torch.randn(3 * 96, 96)
    view.write(wanted)
    assert torch.equal(model.transformer.h[0].attn.c_attn.weight, wanted.T)
