"""Groups as they are written: of a size that divides every row.

No layout of other clients has a shorter last group. Where a group size does not divide `in`, groups are split into
equal parts of gcd(g, in) with repeated statistics, which changes no weight.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch

from roundel.errors import FormatError
from roundel.formats.container import Layer
from roundel.formats.readers import Readers
from roundel.grid.groups import repeat_statistic
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme

_FITTING = (32, 48, 64, 96, 128, 192, 256)


def dividing_group(name: str, group_size: int, in_features: int, smallest: int, container: str) -> int:
    """The group size in the file: the scheme's, or a part of it that divides the row; -1 per channel.

    Args:
        name: of the layer.
        group_size: of its scheme.
        in_features: its inputs.
        smallest: group that splitting may lead to.
        container: whose file it is.

    Raises:
        FormatError: there is none.
    """
    if group_size == -1 or group_size > in_features:
        return -1
    part = math.gcd(group_size, in_features)
    if part != group_size and part < smallest:
        fitting = [g for g in _FITTING if in_features % g == 0]
        raise FormatError(
            f"group_size {group_size} does not fit in_features {in_features} of {name}, and {container} carries no "
            f"shorter last group; use one of {', '.join(map(str, fitting))} or -1, or --format dense"
        )
    return part


def common_group(groups: Mapping[str, int], widths: Mapping[str, int], smallest: int) -> dict[str, int]:
    """One group size for all layers, where theirs have a common part; else as they are.

    Args:
        groups: as `dividing_group` gives them, by the layers' names.
        widths: their inputs.
        smallest: group that splitting may lead to.
    """
    if len(set(groups.values())) > 1:
        common = math.gcd(*(widths[name] if group == -1 else group for name, group in groups.items()))
        if common >= smallest:
            return dict.fromkeys(groups, common)
    return dict(groups)


def with_split(found: Readers, layers: Collection[Layer], schemes: Collection[Scheme]) -> Readers:
    """A word about groups that are written as others.

    Args:
        found: who opens the file.
        layers: as they are quantized.
        schemes: as they are written.
    """
    wanted = {layer.scheme.group_size for layer in layers}
    others = sorted({scheme.group_size for scheme in schemes} - wanted)
    if not others:
        return found
    split = f"Groups of {', '.join(map(str, sorted(wanted)))} are written as {', '.join(map(str, others))}"
    return replace(found, hint=". ".join(filter(None, (found.hint, f"{split}, to divide every row"))))


def repeat_groups(statistic: torch.Tensor, weight: QuantizedWeight, width: int) -> torch.Tensor:
    """`[out, G]` of the tuned groups as `[out, in / width]` of written, smaller ones."""
    return repeat_statistic(statistic, weight.scheme, weight.shape[1], width)
