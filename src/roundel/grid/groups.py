"""Rows to groups and back.

A row that is no multiple of the group size gets a shorter last group. It is padded with its own last value:
minimum, maximum and "all values equal" stay what they were, so no statistic needs to know of the padding.
"""

import torch
import torch.nn.functional as F

from roundel.errors import FormatError
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
    rows = groups.reshape(groups.shape[0], -1)
    return rows[:, :in_features] if rows.shape[1] > in_features else rows


def repeat_statistic(statistic: torch.Tensor, scheme: Scheme, in_features: int, width: int) -> torch.Tensor:
    """`[out, G]` of a scheme's groups as `[out, ceil(in / width)]` of smaller ones."""
    return statistic[:, torch.arange(0, in_features, width) // scheme.width(in_features)].contiguous()


def join_statistic(statistic: torch.Tensor, scheme: Scheme, in_features: int, width: int) -> torch.Tensor:
    """Undo `repeat_statistic`.

    Raises:
        FormatError: a group has several statistics.
    """
    found = statistic[:, torch.arange(0, in_features, scheme.width(in_features)) // width].contiguous()
    if not torch.equal(repeat_statistic(found, scheme, in_features, width), statistic):
        raise FormatError(f"groups of {width} are no equal parts of groups of {scheme.width(in_features)}")
    return found


def importance_groups(diagonal: torch.Tensor | None, rows: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """One importance per input channel, `[in]`, as `[1, G, g]` of mean 1; padding counts nothing.

    None makes all channels of `rows [out, in]` equal. Channels that never fire keep a trace of importance: a
    group of them must not have an error of zero on every grid.
    """
    if diagonal is None:
        diagonal = torch.ones(rows.shape[1], dtype=torch.float32, device=rows.device)
    diagonal = diagonal.float() / diagonal.mean().clamp_min(1e-30) + 1e-6
    g = scheme.width(diagonal.numel())
    return F.pad(diagonal, (0, -diagonal.numel() % g)).view(1, -1, g)
