"""Rows to groups and back.

A row that is no multiple of the group size gets a shorter last group. It is padded with its own last value:
minimum, maximum and "all values equal" stay what they were, so no statistic needs to know of the padding.
"""

import torch
import torch.nn.functional as F

from roundel.grid.scheme import Scheme


def to_groups(rows: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Cut rows into groups.

    Args:
        rows: `[out, in]`, any dtype.
        scheme: gives the group width g.

    Returns:
        `[out, ceil(in / g), g]`; a view of `rows` where g divides `in`.
    """
    out, width = rows.shape
    g = scheme.width(width)
    missing = -width % g
    if missing:
        rows = torch.cat([rows, rows[:, -1:].expand(out, missing)], dim=1)
    return rows.view(out, -1, g) if rows.is_contiguous() else rows.reshape(out, -1, g)


def from_groups(groups: torch.Tensor, in_features: int) -> torch.Tensor:
    """Undo `to_groups`: `[out, G, g]` to `[out, in_features]`, dropping the padding."""
    return groups.reshape(groups.shape[0], -1)[:, :in_features]


def importance_groups(diagonal: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Group one importance per input channel, `[in]` to `[1, G, g]`; padding counts nothing."""
    g = scheme.width(diagonal.numel())
    return F.pad(diagonal, (0, -diagonal.numel() % g)).view(1, -1, g)
