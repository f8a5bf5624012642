"""Weights in the type of their products: the bits of autocast, and the weights themselves afterwards."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from roundel.model.linears import linears_in, multiplying_in
from zoo import zoo_model


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3_moe"])
def test_autocast_gives_the_same_bits(architecture: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(zoo_model(architecture), dtype=torch.float32).eval()
    views = linears_in(model.base_model, "")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.arange(48).view(2, 24) % model.config.vocab_size

    @torch.no_grad()
    def logits() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(ids).logits

    wanted = logits()
    with multiplying_in(torch.bfloat16, views):
        assert any(view.weight.dtype == torch.bfloat16 for view in views)
        assert torch.equal(logits(), wanted)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name]), name
