"""The Linears of a block, each worked on by one of the ranks and handed to all."""

import json
from collections.abc import Callable, Iterator

import torch

from roundel.engine.target import Target
from roundel.grid.affine import QParams
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.grid.serialization import pack_weight, unpack_weight
from roundel.model.linears import LinearView
from roundel.system.ranks import Ranks


def split(
    views: list[LinearView],
    make: Callable[[LinearView], Target],
    schemes: dict[str, Scheme],
    ranks: Ranks,
    *,
    bases: bool,
) -> Iterator[Target]:
    """A target for every Linear in turn, made by the rank that has least to do; the same on all ranks.

    Args:
        views: the Linears.
        make: makes a target.
        schemes: the grid of each.
        ranks: that share the work.
        bases: what the integers were rounded from is needed (by tuning).
    """
    if ranks.size == 1:
        yield from map(make, views)
        return
    owners = _owners(views, ranks.size)
    made: dict[str, Target] = {}
    with ranks.raise_together():
        for view in views:
            if owners[view.name] == ranks.number:
                made[view.name] = make(view)
    for view in views:
        own = made.pop(view.name, None)
        tensors = ranks.broadcast(None if own is None else _pack(own, bases), owners[view.name])
        yield own or _unpack(tensors, view, schemes[view.name])


def _owners(views: list[LinearView], size: int) -> dict[str, int]:
    """Who makes which: the dearest first, each to the rank that has least so far."""
    load = [0] * size
    owners = {}
    for view in sorted(views, key=_cost, reverse=True):
        owner = load.index(min(load))
        owners[view.name] = owner
        load[owner] += _cost(view)
    return owners


def _cost(view: LinearView) -> int:
    """Multiply-adds of error feedback: every column's error to all later ones, and the factor."""
    out, width = view.shape
    return width * width * (out + width // 3)


def _pack(target: Target, bases: bool) -> dict[str, torch.Tensor]:
    tensors = {f"rounded.{part}": tensor for part, tensor in pack_weight(target.rounded).items()}
    tensors["start.scale"], tensors["start.zero"] = target.start.scale, target.start.zero
    tensors["note"] = torch.tensor(list(json.dumps(target.note).encode()), dtype=torch.uint8)
    if bases and target.base is not target.weight:
        tensors["base"] = target.base
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _unpack(tensors: dict[str, torch.Tensor], view: LinearView, scheme: Scheme) -> Target:
    device = view.weight.device
    rounded: QuantizedWeight = unpack_weight(tensors, "rounded", list(view.shape), scheme).to(device)
    weight = view.weight.float().clone()
    start = QParams(
        tensors["start.scale"].to(device),
        tensors["start.zero"].to(device),
        None if isinstance(rounded.scale, torch.Tensor) else rounded.scale,
        None if isinstance(rounded.zero, torch.Tensor) else rounded.zero,
    )
    base = tensors["base"].to(device) if "base" in tensors else weight
    return Target(view, weight, base, start, rounded, note=json.loads(bytes(tensors["note"].tolist())))
