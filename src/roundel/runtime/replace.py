"""Packed modules in a model, in the place of its own.

A weight that several modules share, a head that is tied to the embedding, stays one: their packed modules hold the same
tensors. transformers would tie them again whenever it is asked to (`resize_token_embeddings` asks), by parameters that
are there no more; it is told that there is nothing to tie.

What is replaced computes what a packed module computes: Linears of torch, GPT-2's Conv1D, embeddings of torch and those
that Gemma scales. A class of another forward pass keeps its decoded weight.
"""

import re
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from roundel.grid.quantized_weight import QuantizedWeight
from roundel.runtime.modes import Mode
from roundel.runtime.modules import Packed, PackedEmbedding, PackedLinear
from roundel.runtime.packed_weight import PackedWeight

_LINEARS = (nn.Linear.forward, Conv1D.forward)
# transformers has one such class for each model of Gemma's kind.
_SCALED = "ScaledWordEmbedding"
# Linears whose forward pass is written anew, and computes the same.
_REWRITTEN = ("FalconLinear",)


def places_in(model: nn.Module) -> dict[str, list[str]]:
    """Where packed weights can go: by the name under which a weight is stored, all modules that compute with it.

    Args:
        model: its names and classes; tensors may be absent, but tied.
    """
    sharing: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            sharing.setdefault(id(weight), []).append(name)
    found = {}
    for names in sharing.values():
        modules = [model.get_submodule(name) for name in names]
        if all(_replaceable(module) for module in modules):
            # An embedding has the name of the weight, also where a head comes first.
            names.sort(key=lambda name: not isinstance(model.get_submodule(name), nn.Embedding))
            found[names[0]] = names
    return found


def replace_weight(model: nn.Module, names: list[str], weight: QuantizedWeight, mode: Mode) -> None:
    """Put packed modules in the place of those that share a weight.

    Args:
        model: changed.
        names: of the modules, as `places_in` gives them.
        weight: what they multiply by, `[out, in]`.
        mode: how they compute.
    """
    packed = PackedWeight.pack(weight)
    for name in names:
        module = _packed(model.get_submodule(name), packed)
        module.mode = mode
        owner, _, key = name.rpartition(".")
        setattr(model.get_submodule(owner), key, module.eval())
    _untie(model, names)


def packed_modules(model: nn.Module) -> list[Packed]:
    """Those of a model."""
    return [module for module in model.modules() if isinstance(module, Packed)]


def _replaceable(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding):
        plain = type(module).forward is nn.Embedding.forward
        scale = getattr(module, "embed_scale", None)
        scaled = type(module).__name__.endswith(_SCALED) and isinstance(scale, torch.Tensor)
        return (plain or scaled) and module.max_norm is None
    known = type(module).forward in _LINEARS or type(module).__name__ in _REWRITTEN
    return isinstance(module, nn.Linear | Conv1D) and known


def _packed(module: nn.Module, weight: PackedWeight) -> Packed:
    own: Any = module.weight
    if isinstance(module, nn.Embedding):
        return PackedEmbedding(weight, own.dtype, getattr(module, "embed_scale", None))
    bias: Any = module.bias
    linear = PackedLinear(weight, own.dtype, bias)
    linear.stands_for_transposed = isinstance(module, Conv1D)
    return linear


def _untie(model: nn.Module, names: list[str]) -> None:
    """Take packed weights out of what transformers ties."""
    gone = {f"{name}.weight" for name in names}
    for prefix, owner in model.named_modules():
        own = {name.removeprefix(f"{prefix}.") if prefix else name for name in gone}
        for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
            pairs = getattr(owner, attribute, None)
            if isinstance(pairs, dict):
                kept = {to: of for to, of in pairs.items() if not _speaks_of(own, to, of)}
                if len(kept) < len(pairs):
                    setattr(owner, attribute, kept)


def _speaks_of(names: set[str], *patterns: str) -> bool:
    return any(re.search(f"^{pattern}", name) for pattern in patterns for name in names)
