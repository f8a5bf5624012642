"""Bytes of a step, against sums over named tensors that say which are read."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from roundel.model.bytes_read import bytes_read
from zoo.training import _make

IDS = torch.tensor([[7]])


def step(model: Any) -> Callable[[], object]:
    return lambda: model(input_ids=IDS)


def weights(model: nn.Module, *, without: tuple[str, ...] = ()) -> int:
    """Of all parameters, shared ones once, but those whose names have one of some words in them."""
    return sum(
        p.numel() * p.element_size()
        for name, p in model.named_parameters()
        if not any(word in name for word in without)
    )


def tables(model: nn.Module) -> int:
    """Of the few numbers that modules keep beside their weights: frequencies, scales."""
    return sum(b.numel() * b.element_size() for b in model.buffers() if b.dtype != torch.bool)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_embedding_of_its_own_is_one_row(dtype: torch.dtype) -> None:
    model = _make("llama").to(dtype).eval()
    row = model.config.hidden_size * dtype.itemsize
    wanted = weights(model, without=("embed_tokens",)) + row + tables(model)
    assert bytes_read(model, step(model)) == wanted


def test_one_that_is_the_head_is_read_once_and_whole() -> None:
    model = _make("gpt2").eval()
    assert model.lm_head.weight is model.transformer.wte.weight
    row = model.config.n_embd * 4
    assert bytes_read(model, step(model)) == weights(model, without=("wpe",)) + row + tables(model)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_experts_that_are_chosen(name: str) -> None:
    model = _make(name).eval()
    config = model.config
    experts = getattr(config, "num_local_experts", None) or config.num_experts
    share = config.num_experts_per_tok / experts
    one = weights(model, without=(".experts.", "embed_tokens"))
    stacked = weights(model) - weights(model, without=(".experts.",))
    wanted = one + share * stacked + config.hidden_size * 4 + tables(model)
    assert bytes_read(model, step(model)) == wanted
    assert 0 < share < 1


def test_experts_that_are_all_computed() -> None:
    model = _make("llama4").eval()
    row = model.config.hidden_size * 4
    assert bytes_read(model, step(model)) == weights(model, without=("embed_tokens",)) + row + tables(model)


def test_packed_weights_count_as_they_are_stored_and_idle_modules_not_at_all() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("codes", torch.zeros(8, 4, dtype=torch.uint8))
            self.register_buffer("scales", torch.ones(8, 1, dtype=torch.float16), persistent=False)
            self.register_buffer("mask", torch.ones(100, dtype=torch.bool))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.tower = Packed(), Packed(), nn.Linear(64, 64)
            self.again.codes = self.first.codes

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.again(self.first(x))

    model = Model()
    assert bytes_read(model, lambda: model(torch.ones(1))) == 8 * 4 + 2 * 8 * 2
    assert not any(module._forward_pre_hooks for module in model.modules())
