"""Which parametrization a learned method gives a Linear, and with which step sizes."""

import torch

from roundel.engine.target import Target
from roundel.methods.division import FullDivisor, LearnedDivision, LowRankDivisor, StepSizes
from roundel.methods.parametrization import Parametrization
from roundel.methods.registry import METHODS
from roundel.methods.signround import RoundingOffsets
from roundel.recipe import Recipe


def make_parametrization(target: Target, recipe: Recipe, generator: torch.Generator) -> Parametrization:
    """The parametrization of a Linear, at its start.

    Args:
        target: the Linear with its start grid and outliers.
        recipe: a learned method's.
        generator: draws the random start of a low-rank division.
    """
    scheme, outliers = target.rounded.scheme, target.rounded.outliers
    offset_lr = recipe.resolved_lr(scheme.bits)
    if recipe.divides:
        division_lr = recipe.resolved_division_lr(scheme.bits, recipe.iters)
        scale_lr = recipe.minmax_lr or division_lr
        if recipe.offsets:
            # Two ways to move the same code: each goes half of its own.
            offset_lr = recipe.lr or offset_lr / 2
            division_lr = recipe.division_lr or division_lr / 2
        divisor: FullDivisor | LowRankDivisor = FullDivisor(target.base)
        if METHODS[recipe.method].divisor == "low-rank":
            divisor = LowRankDivisor(target.base, recipe.resolved_rank(target.rounded.shape), generator)
        return LearnedDivision(
            target.base,
            target.start,
            scheme,
            divisor=divisor,
            steps=StepSizes(
                divisor=division_lr,
                scale=scale_lr if recipe.enable_minmax_tuning else None,
                offset=offset_lr if recipe.offsets else None,
            ),
            outliers=outliers,
        )
    minmax_lr = recipe.resolved_minmax_lr(recipe.grid_fit == "search")
    return RoundingOffsets(
        target.base,
        target.start,
        scheme,
        lr=offset_lr,
        minmax_lr=minmax_lr if recipe.enable_minmax_tuning else None,
        minmax_limit=recipe.minmax_limit,
        outliers=outliers,
    )
