"""A model in memory gets the checks that a folder gets, before any work.

Most of what people hold is a model of transformers. What else can be in their hands looks like one from outside, and is
not: wrappers that hold it, weights that are elsewhere, adapters beside the weights, Linears of another quantizer.
Where there is a plain model inside, its name is said; it is taken without asking in one case only: `torch.compile`
gives an object with the very modules and parameters of the model, and nothing of its own but code. Wrappers of several
processes or devices are refused, as what should become of the others is not ours to guess.
"""

import copy
from typing import Any

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from roundel.errors import ModelError
from roundel.model.classes import auto_class
from roundel.model.stored_types import PLAIN_TYPES

# Packages whose modules hold weights in a form of their own.
_QUANTIZERS = (
    "bitsandbytes",
    "torch.ao",
    "torchao",
    "gptqmodel",
    "auto_gptq",
    "awq",
    "optimum",
    "hqq",
    "eetq",
)


def name_of(model: nn.Module) -> str:
    """What a model in memory is called in messages."""
    return f"{type(model).__name__} in memory"


def checked(model: nn.Module, *, original: bool) -> nn.Module:
    """The model that a caller holds.

    Args:
        model: whatever the caller gave.
        original: it is to be quantized; else run, as it is.

    Raises:
        ModelError: it is no causal language model of transformers, its weights are not there, or, of an original, they
            are not plain weights.
    """
    if isinstance(model, OptimizedModule):
        model = model._orig_mod
    _check_parts(model)
    inner = _peeled(model)
    if original and (inner is not model or any(_is_of(module, ("peft",)) for module in model.modules())):
        raise ModelError(
            f"{name_of(model)} holds a PEFT adapter beside its weights: plain weights are expected; merge it first "
            "(model = model.merge_and_unload()), or name the adapter's folder"
        )
    _check_kind(inner)
    _check_weights(model)
    if original:
        _check_plain(model)
    return model


def check_apart(models: list[Any]) -> None:
    """Models that are compared must not be one.

    Args:
        models: in memory; those that are not are not looked at.

    Raises:
        ModelError: two of them share weights.
    """
    held: dict[tuple[str, int], tuple[nn.Module, str]] = {}
    for model in models:
        if not isinstance(model, nn.Module):
            continue
        own = {}
        for name, tensor in model.named_parameters():
            place = (str(tensor.device), tensor.untyped_storage().data_ptr())
            if place[1] == 0:
                continue
            if place in held:
                other, known = held[place]
                same = "are one object" if other is model else f"share weights ({known})"
                raise ModelError(
                    f"{name_of(other)} and {name_of(model)}, which are to be compared, {same}: two models are "
                    "expected. Quantizing changes a model in place: open the original anew, or name its folder"
                )
            own[place] = (model, name)
        held |= own


def _check_parts(model: nn.Module) -> None:
    """What a wrapper of parts of a model leaves in its names and weights."""
    for name, module in model.named_modules():
        if isinstance(module, OptimizedModule):
            raise ModelError(
                f"{name} of {name_of(model)} was compiled by itself (torch.compile): a model as it was opened is "
                "expected; compile its parts afterwards, or with module.compile(), which is put aside"
            )
        if _is_of(module, ("torch.distributed.fsdp", "deepspeed")):
            raise ModelError(
                f"{name_of(model)} is spread over processes ({type(module).__name__}): a whole model is expected; save "
                "it and name its folder"
            )
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor) or isinstance(parameter.data, DTensor):
            raise ModelError(
                f"{name} of {name_of(model)} is spread over processes (DTensor): a whole model is expected; "
                "save it and name its folder"
            )


def _peeled(model: nn.Module) -> PreTrainedModel:
    """The model of transformers: itself, or inside a PEFT adapter."""
    if isinstance(model, PreTrainedModel):
        return model
    inside = ((n, m) for n, m in model.named_modules() if isinstance(m, PreTrainedModel))
    name, inner = next(inside, ("", None))
    if inner is None:
        raise ModelError(
            f"{name_of(model)} is no model of transformers: a causal language model that transformers opened is "
            "expected, or its folder"
        )
    if not _is_of(model, ("peft",)):
        raise ModelError(
            f"{name_of(model)} is a wrapper around a {type(inner).__name__}: the model itself is expected; pass its "
            f".{name}"
        )
    return inner


def _check_kind(model: PreTrainedModel) -> None:
    """Its class is one that a folder is opened by, or derived from one, or the caller's own with a head."""
    config: Any = copy.copy(model.config)
    refused = None
    for base in type(model).__mro__:
        if base is PreTrainedModel or not issubclass(base, PreTrainedModel):
            continue
        config.architectures = [base.__name__]
        try:
            auto_class(config, name_of(model))
            return
        except ModelError as error:
            refused = refused or error
    own = not _is_of(model, ("transformers",)) and not getattr(config, "is_encoder_decoder", False)
    if refused is not None and not (own and model.get_output_embeddings() is not None):
        raise refused


def _check_weights(model: nn.Module) -> None:
    """They are all there, on one device."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    hooks = any(getattr(module, "_hf_hook", None) is not None for module in model.modules())
    absent = next((name for name, tensor in tensors if tensor.is_meta), None)
    if absent is not None:
        where = "offloaded, and not in memory" if hooks else "without values (on the meta device)"
        raise ModelError(
            f"{absent} of {name_of(model)} is {where}: a model with all of its weights is expected; open it without "
            "device_map, or name its folder, which Roundel reads block by block"
        )
    devices = sorted({str(tensor.device) for _, tensor in tensors})
    if hooks or len(devices) > 1:
        raise ModelError(
            f"{name_of(model)} is dispatched by accelerate ({', '.join(devices)}): a model on one device, without its "
            "hooks, is expected; open it without device_map, or name its folder, which Roundel reads block by block"
        )


def _check_plain(model: nn.Module) -> None:
    """Its weights are floating-point numbers that stand for nothing else."""
    config: Any = model.config
    method = getattr(config, "quantization_config", None)
    foreign = next((type(m).__name__ for m in model.modules() if _is_of(m, _QUANTIZERS)), None)
    if getattr(model, "hf_quantizer", None) is not None or method is not None or foreign is not None:
        kind = (
            method.get("quant_method") if isinstance(method, dict) else getattr(method, "quant_method", None)
        )
        kind = getattr(kind, "value", kind) or foreign or type(model.hf_quantizer).__name__
        raise ModelError(
            f"{name_of(model)} is quantized already ({kind}): a model with plain weights is expected; name its "
            "folder or file instead, from which Roundel reads many kinds, or take the original"
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module._parameters.get("weight") is None:
            raise ModelError(
                f"the weight of {name} of {name_of(model)} is computed from other tensors whenever it runs (weight "
                "norm, pruning): a weight of its own is expected; make it permanent (remove_parametrizations, "
                "prune.remove)"
            )
    for name, parameter in model.named_parameters():
        if parameter.dtype not in PLAIN_TYPES:
            raise ModelError(
                f"{name} of {name_of(model)} has the type {parameter.dtype}: weights in bfloat16, float16 or float32 "
                "are expected; take the original"
            )
        if type(parameter.data) is not torch.Tensor:
            raise ModelError(
                f"{name} of {name_of(model)} is held by a {type(parameter.data).__name__}: plain tensors are expected; "
                "take the original"
            )


def _is_of(module: nn.Module, packages: tuple[str, ...]) -> bool:
    """Whether the class of a module is one of these packages'."""
    home = type(module).__module__
    return any(home == package or home.startswith(f"{package}.") for package in packages)
