"""Models in memory as callers hold them: in the middle of training, with an adapter; and all that such a model is.

The laws run over a dense model, one with tied weights, one whose Linears are stored the other way round, and one with
stacked experts.
"""

import copy
from typing import Any

import torch
import torch.nn.utils.prune
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
)

import roundel
from zoo import zoo_model

ARCHITECTURES = ("llama", "opt", "gpt2", "mixtral")
RTN = {"method": "rtn", "bits": 3, "group_size": 32, "sym": True, "format": "roundel"}
TUNED = {"method": "autoround", "bits": 3, "group_size": 32, "iters": 2, "nsamples": 4, "seqlen": 32}
TUNED |= {"format": "roundel"}
IDS = torch.arange(5, 45)[None]


def opened(name: str = "llama") -> Any:
    return AutoModelForCausalLM.from_pretrained(zoo_model(name))


def reader(name: str = "llama") -> Any:
    return AutoTokenizer.from_pretrained(zoo_model(name))


def recipe(**more: Any) -> roundel.Recipe:
    return roundel.Recipe.create(**{**RTN, **more})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def in_training(name: str) -> Any:
    """A model whose owner is in the middle of something, different for every part."""
    model = opened(name)
    model.train()
    model.config.use_cache = False
    model.generation_config.max_new_tokens = 7
    (model(IDS, labels=IDS).loss).backward()
    for number, (_, module) in enumerate(model.named_modules()):
        module.training = number % 3 != 0
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 4 != 0)
        if number % 5 == 0:
            parameter.grad = None
    model.seen = []
    last = list(model.modules())[-1]
    last.register_forward_hook(lambda *_: model.seen.append("forward") and None)
    model.register_forward_pre_hook(lambda *_: None)
    return model


def state(model: Any) -> dict[str, Any]:
    """All that a model is: objects by their identity, values by their bytes."""
    found: dict[str, Any] = {"class": type(model)}
    for name, module in model.named_modules():
        found |= {f"{name} {key}": id(value) for key, value in module.__dict__.items()}
        found[f"{name} class"] = type(module)
        for key, value in module.__dict__.items():
            if isinstance(value, dict):
                found |= {f"{name} {key} {inner}": id(item) for inner, item in value.items()}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
        found[f"tensor {name}"] = (
            id(tensor),
            tensor.data_ptr(),
            tensor.dtype,
            tensor.device,
            tensor.requires_grad,
            id(tensor.grad),
            None if tensor.grad is None else tensor.grad.numpy().tobytes(),
            tensor.detach().numpy().tobytes(),
        )
    for config in (model.config, model.generation_config):
        assert isinstance(config, PreTrainedConfig | GenerationConfig)
        found[f"config {type(config).__name__}"] = copy.deepcopy(config.to_dict())
        found |= {f"config {key}": id(value) for key, value in config.__dict__.items()}
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]


def with_lora(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
