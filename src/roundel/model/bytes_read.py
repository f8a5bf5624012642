"""How many bytes of weights a model reads for one token.

While a single sequence is decoded, almost every weight is multiplied by one vector: it comes from main memory, is used
once, and makes room for the next. So these bytes over the memory's bandwidth are the time that a token takes at least.

They are counted by looking at one step. A module that is called reads its own parameters and buffers; one that is not
(the tower of another modality, an expert that was not chosen) reads none. An embedding gives one row, unless its table
is the head's too. Of experts in one tensor `[E, out, in]` those are read whose numbers the module is given; where it is
given none, it computes all. Boolean buffers are masks. The KV cache is none of this.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn


def bytes_read(model: nn.Module, step: Callable[[], object]) -> int:
    """Bytes of parameters and buffers, as they are stored, that a step reads; shared ones once.

    Args:
        model: of which modules are watched.
        step: decodes one token.
    """
    read: dict[tuple[int, int], int] = {}
    rows = _embeddings(model)

    def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.dtype == torch.bool or tensor.numel() == 0:
                continue
            size = tensor.numel() * tensor.element_size()
            share = _row_share(module) if module in rows else _experts_share(module, tensor, args, kwargs)
            place = (tensor.data_ptr(), size)
            read[place] = max(read.get(place, 0), round(size * share))

    with ExitStack() as hooks:
        for module in model.modules():
            hooks.callback(module.register_forward_pre_hook(called, with_kwargs=True).remove)
        step()
    return sum(read.values())


def bytes_held(model: nn.Module) -> int:
    """Bytes of all that a model stores, parameters and what packed weights are made of, shared ones once."""
    stored = model.state_dict(keep_vars=True).values()
    # Tensors on the meta device have no address.
    return sum({(t.data_ptr() or id(t), t.nbytes): t.nbytes for t in stored}.values())


def _embeddings(model: nn.Module) -> set[nn.Module]:
    """Modules of which a token reads a row."""
    found = {module for module in model.modules() if isinstance(module, nn.Embedding)}
    get: Any = getattr(model, "get_input_embeddings", None)
    table = get() if get is not None else None
    return found | ({table} if isinstance(table, nn.Module) else set())


def _row_share(table: Any) -> float:
    rows = getattr(table, "num_embeddings", None)
    return 1 / (rows or table.weight.shape[0])


def _experts_share(
    module: nn.Module, tensor: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> float:
    """The share of a stack's experts that a call is to compute; 1 for everything else."""
    count = getattr(module, "num_experts", None)
    if tensor.dim() < 2 or count != tensor.shape[0]:
        return 1.0
    for given in (*args, *kwargs.values()):
        if isinstance(given, torch.Tensor) and given.dtype in (torch.int64, torch.int32) and given.numel():
            return min(1.0, given.unique().numel() / count)
    return 1.0
