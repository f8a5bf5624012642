"""A Linear whose rows a checkpoint keeps as several Linears, put together again."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from roundel.grid.quantized_weight import QuantizedWeight
from roundel.model.names import Part


def joined_rows(parts: Sequence[Part], weights: Iterable[QuantizedWeight]) -> QuantizedWeight:
    """One weight from those of its rows, all on plain grids of one scheme.

    Args:
        parts: which rows.
        weights: in the same order.
    """
    found = list(weights)
    if len(found) == 1 and isinstance(parts[0].rows, slice):
        return found[0]
    numbers = torch.arange(sum(len(weight.codes) for weight in found))
    places = torch.cat([numbers[part.rows] for part in parts])

    def joined(pieces: list[torch.Tensor]) -> torch.Tensor:
        together = torch.cat(pieces)
        return torch.empty_like(together).index_copy_(0, places, together)

    scales = [weight.scale for weight in found if isinstance(weight.scale, torch.Tensor)]
    zeros = [weight.zero for weight in found if isinstance(weight.zero, torch.Tensor)]
    return replace(
        found[0],
        codes=joined([weight.codes for weight in found]),
        scale=joined(scales),
        zero=joined(zeros) if zeros else None,
    )
