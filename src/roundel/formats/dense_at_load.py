"""Models whose packed weights transformers opens only if they become dense while it loads them.

Ordinarily it puts packed Linears in place of the model's and unpacks them at the first forward pass. A tensor of
experts is no Linear, and some classes (Falcon, Mamba-2) look at the weights of their Linears before that; both open
with `dequantize: true` in the file. That mode reads one scheme, and runs with unquantized activations.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from roundel.activations.scheme import Activations
from roundel.errors import FormatError
from roundel.formats.container import Layer
from roundel.model.experts import stacks_in

_WAYS_OUT = "use --format roundel, or --format dense"


def opens_dense_only(model: Any, names: Collection[str]) -> bool:
    """Whether a model has to be opened in this way.

    Args:
        model: its names and shapes; tensors may be absent.
        names: of its quantized Linears.
    """
    stacks = stacks_in(model)
    if any(name.rpartition(".")[0] in stacks for name in names):
        return True
    with torch.device("meta"):
        packed = type(model)(model.config)
    for name in names:
        del packed.get_submodule(name).weight
    return any(_wants_weight(packed, module) for module in packed.modules())


def _wants_weight(model: Any, module: nn.Module) -> bool:
    """Whether transformers' own preparation of a module stumbles over the absence of a weight."""
    try:
        with torch.device("meta"):
            model._init_weights(module)
    except AttributeError as error:
        return "weight" in str(error)
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        return False  # of something that cannot be done without data
    return False


def check_dense_at_load(layers: list[Layer], schemes: int, model: Any, activations: Activations) -> None:
    """Refuse what is not read in this way.

    Args:
        layers: that are to be quantized.
        schemes: how many there are.
        model: its names and shapes; tensors may be absent.
        activations: how they are quantized.

    Raises:
        FormatError: names a layer and a way out.
    """
    kind = type(model).__name__
    if activations or schemes > 1:
        found = "quantized activations" if activations else f"{schemes} schemes"
        raise FormatError(
            f"transformers opens packed weights of {kind} with one scheme and unquantized activations only, and there "
            f"are {found}: {_WAYS_OUT}"
        )
    stacks = stacks_in(model)
    experts = [layer for layer in layers if layer.kind == "Expert"]
    names = {layer.name for layer in experts}
    for layer in experts:
        stack = layer.name.rpartition(".")[0]
        left = [i for i in range(len(stacks[stack])) if f"{stack}.{i}" not in names]
        if not layer.scheme.sym:
            raise FormatError(
                f"{layer.name} has zero points, which transformers does not read of experts: set sym=true, or "
                f"{_WAYS_OUT}"
            )
        if left:
            raise FormatError(
                f"{layer.name} is quantized and {stack}.{left[0]} is not, which transformers does not read of experts: "
                f"quantize all of them or none, or {_WAYS_OUT}"
            )
