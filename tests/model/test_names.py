from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from roundel.model.experts import divide, stacks_in
from roundel.model.linears import linears_in
from roundel.model.names import stored_parts, stored_tensors
from zoo import zoo_model


def opened(folder: Path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    divide(model)
    return model


@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen3_moe", "deepseek_v3"])
def test_parts_are_what_the_checkpoint_holds(name: str) -> None:
    """Put together from the file by names and rows, every Linear is what transformers loads."""
    folder = zoo_model(name)
    model = opened(folder)
    views = linears_in(model, "")
    parts = stored_parts(model, [view.name for view in views], stacks_in(model))
    with safe_open(folder / "model.safetensors", "pt") as file:
        for view in views:
            found = torch.full(view.shape, torch.nan)
            for part in parts[view.name]:
                found[part.rows] = file.get_tensor(f"{part.name}.weight")
            assert torch.equal(found, view.weight)


def test_gate_and_up_are_apart_in_checkpoints() -> None:
    model = opened(zoo_model("mixtral"))
    name = "model.layers.0.mlp.experts.gate_up_proj.2"
    height = len(model.get_submodule(name).weight)
    parts = stored_parts(model, [name], stacks_in(model))[name]
    assert [(part.name, part.rows) for part in parts] == [
        ("model.layers.0.block_sparse_moe.experts.2.w1", slice(0, height // 2)),
        ("model.layers.0.block_sparse_moe.experts.2.w3", slice(height // 2, height)),
    ]


@pytest.mark.parametrize("name", ["gpt_oss", "llama4"])
def test_experts_that_checkpoints_keep_together_have_no_parts(name: str) -> None:
    model = opened(zoo_model(name))
    experts = [f"{stack}.0" for stack in stacks_in(model)]
    assert experts
    assert all(parts == [] for parts in stored_parts(model, experts, stacks_in(model)).values())


def test_other_tensors_get_their_checkpoint_names() -> None:
    model = opened(zoo_model("mixtral"))
    router = "model.layers.0.mlp.gate.weight"
    stored = stored_tensors(model, {router: model.get_parameter(router)})
    assert set(stored) == {"model.layers.0.block_sparse_moe.gate.weight"}
