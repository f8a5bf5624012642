"""FlexRound and LRQ: learned element-wise division, full (arXiv 2306.00317, eq. 2) or of low rank (2407.11534, eq. 2).

    W^ = s1 (clamp(round(W / (s1 D) + V) + z, 0, n) - z)

    FlexRound   log D = log S2 + log s3             S2 [out, in], s3 [out, 1]
    LRQ         log D = L U + r + c                 L [out, k], U [k, in], r [out, 1], c [1, in]

s1, the scale, is learned in the divisor and in the result; D in the divisor only, so that it decides which code a
weight gets. z is an integer, fixed at the start. Everything positive is learned as its logarithm, which makes steps
relative: one step size fits layers, models and widths. All logarithms start at 0, so step 0 is RTN on the start
grid; L starts at 0 and U at random, as in the paper.

Division moves a weight in proportion to its size: log D = d moves the code of W = u s by u d. A weight near zero
hardly moves at all. V, the additive offset of SignRound, is the cure (`offsets`); nobody published the pair.

Where the scale is not ours to learn (statistics on two levels, real zero points) s1 keeps its start.
"""

from dataclasses import dataclass

import torch
from torch import nn

from roundel.grid.affine import QParams
from roundel.grid.groups import to_groups
from roundel.grid.outliers import Outliers
from roundel.grid.scheme import Scheme
from roundel.methods.fake_quantize import straight_through
from roundel.methods.parametrization import Parametrization


class FullDivisor(nn.Module):
    """log D of FlexRound: an entry per weight and one per row."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.entries = nn.Parameter(torch.zeros_like(weight))  # log S2
        self.rows = nn.Parameter(weight.new_zeros(len(weight), 1))  # log s3

    def forward(self) -> torch.Tensor:
        """`[out, in]`."""
        return self.entries + self.rows


class LowRankDivisor(nn.Module):
    """log D of LRQ: a product of rank k, a column and a row.

    U is uniform with variance 1 / k (Kaiming's rule, k being its fan-out), so that a step of L by some amount per
    entry moves log D by that amount per entry, whatever the rank. Where the fan is the number of inputs, as in the
    paper's code, a smaller rank makes smaller steps.
    """

    def __init__(self, weight: torch.Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        out, width = weight.shape
        bound = (3 / rank) ** 0.5
        right = torch.rand(rank, width, generator=generator, dtype=torch.float32).mul_(2 * bound).sub_(bound)
        self.left = nn.Parameter(weight.new_zeros(out, rank))  # L
        self.right = nn.Parameter(right.to(weight.device))  # U
        self.rows = nn.Parameter(weight.new_zeros(out, 1))  # r
        self.columns = nn.Parameter(weight.new_zeros(1, width))  # c

    def forward(self) -> torch.Tensor:
        """`[out, in]`."""
        return torch.addmm(self.rows + self.columns, self.left, self.right)


@dataclass(frozen=True)
class StepSizes:
    """Of what is learned.

    Attributes:
        divisor: of log D.
        scale: of log s1; None leaves the scale as it is.
        offset: of V, in codes; None: no offsets.
    """

    divisor: float
    scale: float | None = None
    offset: float | None = None


class LearnedDivision(Parametrization):
    """The parametrization of one Linear.

    Args:
        weight, start, scheme, outliers: as for every parametrization.
        divisor: log D as a module.
        steps: how fast each learns.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        start: QParams,
        scheme: Scheme,
        *,
        divisor: nn.Module,
        steps: StepSizes,
        outliers: Outliers | None = None,
    ) -> None:
        super().__init__(weight, start, scheme, outliers)
        self.divisor = divisor
        self.steps = steps
        self.log_scale = nn.Parameter(torch.zeros_like(start.scale), requires_grad=steps.scale is not None)
        if steps.offset is not None:
            self.offset = nn.Parameter(torch.zeros_like(self.groups))

    def parameter_groups(self) -> list[dict[str, object]]:
        """log D, log s1 and V, each with its own step size."""
        groups: list[dict[str, object]] = [
            {"params": list(self.divisor.parameters()), "lr": self.steps.divisor}
        ]
        if self.steps.scale is not None:
            groups.append({"params": [self.log_scale], "lr": self.steps.scale})
        if self.offset is not None:
            groups.append({"params": [self.offset], "lr": self.steps.offset})
        return groups

    def grid(self) -> tuple[torch.Tensor, torch.Tensor]:
        """s1 and the zero point of the start."""
        zero = self.start.stored_zero(self.scheme)
        if self.steps.scale is None:
            return self.start.scale, zero
        scale = self.start.scale * self.log_scale.exp()
        return straight_through(scale, self.start.nearest(scale.detach(), zero, self.scheme).scale), zero

    def log_divisor(self) -> torch.Tensor:
        """log D, `[out, G, g]`."""
        return to_groups(self.divisor(), self.scheme)
