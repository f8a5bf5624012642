"""The names of what a client may take for a Linear and is not quantized, for the list that every format has of them."""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from roundel.formats.content import Content
from roundel.model.names import stored_tensors


def left_out(content: Content, quantized: Collection[str]) -> list[str]:
    """Modules with a matrix that is not quantized; routers too, in other clients they are Linears.

    By both of its names, where a checkpoint has another.

    Args:
        content: what is written.
        quantized: names of Linears.
    """
    model = content.model
    names = [
        name
        for name, module in model.named_modules()
        if name not in quantized and not isinstance(module, nn.Embedding) and _has_matrix(module)
    ]
    stored = stored_tensors(model, {f"{name}.weight": torch.empty(0) for name in names})
    kept = (name.removesuffix(".weight") for name in stored)
    return list(dict.fromkeys([*names, *kept, *content.extra.linears]))


def _has_matrix(module: nn.Module) -> bool:
    weight: Any = module._parameters.get("weight")
    return weight is not None and weight.ndim == 2
