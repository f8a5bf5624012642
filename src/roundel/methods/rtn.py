"""RTN: round every weight to the nearest point of its grid. The baseline, and every method's step 0."""

import torch

from roundel.grid.affine import QParams, minmax_start
from roundel.grid.block_fit import block_start
from roundel.grid.joint import joint_start
from roundel.grid.scheme import Scheme
from roundel.grid.search import searched_start


def make_start(weight: torch.Tensor, scheme: Scheme, kind: str, diagonal: torch.Tensor | None) -> QParams:
    """The grid before tuning.

    Args:
        weight: `[out, in]`, finite.
        scheme: which grid.
        kind: `minmax` or `search`.
        diagonal: `[in]` mean squared inputs that weight the search, or None.
    """
    if scheme.type is not None:
        return block_start(weight, scheme, diagonal, search=kind == "search")
    if scheme.two_level or not scheme.round_zero:
        return joint_start(weight, scheme, diagonal, search=kind == "search")
    if kind == "search":
        return searched_start(weight, scheme, diagonal)
    return minmax_start(weight, scheme)
