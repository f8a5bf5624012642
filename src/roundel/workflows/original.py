"""Figures of the unquantized model, for the manifest."""

from math import prod
from typing import Any

import torch

from roundel.model.beside import left_beside
from roundel.model.source import SourceModel


def original_bytes(source: SourceModel) -> int:
    """Of a model's parameters, and of the tensors of its checkpoint that have no place in it."""
    return sum(p.numel() * p.element_size() for p in source.model.parameters()) + source.extra.bytes


def describe_original(source: SourceModel, fingerprint: str) -> dict[str, Any]:
    """What a model is, in plain data.

    Args:
        source: the model as it was opened.
        fingerprint: of its weights.
    """
    model, place = source.model, source.place
    parameters = list(model.parameters())
    about = {
        "fingerprint": fingerprint,
        "bytes": original_bytes(source),
        "bits_per_weight": torch.finfo(model.dtype).bits,
        "parameters": sum(p.numel() for p in parameters) + sum(map(prod, source.extra.shapes.values())),
    }
    if source.read_from:
        about["read_from"] = source.read_from
    about |= source.parents
    if place is not None and (beside := left_beside(place)):
        about["left_out"] = beside
    if place is not None and place.commit:
        about["commit"] = place.commit
    return about
