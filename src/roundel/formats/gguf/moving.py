"""Tensors of a model as its layout counts their rows, and the rows that go to a place."""

import re
from collections.abc import Callable
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from roundel.formats.gguf.layout import Layout, Place
from roundel.model.experts import stacked_in
from roundel.model.hints import STORED_TRANSPOSED

CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "squeezed": lambda tensor: tensor.squeeze(1),
    "minus exp": lambda tensor: -torch.exp(tensor),
}
"""By the names that places have for them."""


def transposed_in(model: Any) -> frozenset[str]:
    """The tensors that a model stores as `[in, out]`, or as `[E, in, out]`; a layout counts rows of `[out, in]`."""
    found = set()
    for name, module in model.named_modules():
        if isinstance(module, Conv1D):
            found.add(f"{name}.weight")
        elif getattr(module, "is_transposed", STORED_TRANSPOSED.get(type(module).__name__)):
            found.update(f"{name}.{key}" for key in stacked_in(module))
    return frozenset(found)


def expert_places(name: str, places: list[Place], shape: tuple[int, ...]) -> Layout:
    """The places of the matrices of a tensor that experts share, each as a Linear of its own.

    Args:
        name: of the tensor.
        places: of the tensor.
        shape: `[E, out, in]` if experts share it.
    """
    if len(shape) != 3 or any(place.expert is None for place in places):
        return {}
    return {
        f"{name}.{expert}.weight": [place for place in places if place.expert == expert]
        for expert in range(shape[0])
    }


def is_stack(name: str, places: list[Place]) -> bool:
    """Whether a tensor is that of all experts, `[E, out, in]` or of their biases `[E, out]`, not of one.

    Args:
        name: of the tensor in the model.
        places: of the tensor.
    """
    alone = re.search(r"\.\d+\.(weight|bias)$", name) is not None
    return bool(places) and places[0].expert is not None and not alone


def moved(tensor: torch.Tensor, place: Place, *, stacked: bool = False) -> torch.Tensor:
    """What goes to a place.

    Args:
        tensor: as `[out, in]`, or any other shape; of experts that share one `[E, out, in]`.
        place: one of its places.
        stacked: it is all experts' tensor, and the place is one expert's.
    """
    if stacked:
        assert place.expert is not None
        tensor = tensor[place.expert]
    if place.rows is not None:
        tensor = tensor[place.rows.to(tensor.device)]
    if place.through:
        tensor = CHANGES[place.through](tensor)
    return tensor + place.plus if place.plus else tensor
