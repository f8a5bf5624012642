"""A Linear on its way: its weight, its grid, and its integers before any tuning."""

from dataclasses import dataclass, field

import torch

from roundel.engine.moments import Hessian
from roundel.errors import NonFiniteError
from roundel.grid.affine import QParams
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.methods.cholesky import SharedFactor
from roundel.methods.gptq import gptq
from roundel.methods.rtn import make_start
from roundel.methods.spqr import spqr
from roundel.model.linears import LinearView
from roundel.recipe import Recipe
from roundel.system.finite import all_finite


@dataclass
class Original:
    """A Linear as it was.

    Attributes:
        view: the Linear.
        weight: `[out, in]` fp32, a copy of the original.
        note: for the coverage table, what the user did not ask for.
    """

    view: LinearView
    weight: torch.Tensor
    note: str = field(default="", kw_only=True)


@dataclass
class Target(Original):
    """A Linear that is to be quantized.

    Attributes:
        base: `[out, in]` fp32, where tuning starts: the weight, or what error feedback made of it.
        start: its grid.
        rounded: its integers.
    """

    base: torch.Tensor
    start: QParams
    rounded: QuantizedWeight


def round_to_nearest(
    view: LinearView, scheme: Scheme, kind: str, diagonal: torch.Tensor | None, note: str = ""
) -> Target:
    """A target on its start grid, `minmax` or `search`."""
    weight = view.weight.to(torch.float32, copy=True)
    start = make_start(weight, scheme, kind, diagonal)
    return Target(view, weight, weight, start, start.quantize(weight, scheme), note=note)


def check_weight(view: LinearView) -> None:
    """Before it is worked on.

    Raises:
        NonFiniteError: the weight holds NaN or infinity.
    """
    if not all_finite(view.weight):
        raise NonFiniteError(f"the weight of {view.name} holds NaN or infinity: the source model is damaged")


def too_few(tokens: int, view: LinearView, recipe: Recipe) -> str:
    """What is missing where a Linear saw fewer tokens than the recipe wants; else nothing."""
    wanted = recipe.min_tokens * view.shape[1]
    return f"saw {tokens} tokens, {wanted:.0f} expected" if tokens < wanted else ""


def round_by_hessian(
    view: LinearView,
    scheme: Scheme,
    hessian: Hessian,
    moments: torch.Tensor | None,
    recipe: Recipe,
    shared: SharedFactor | None = None,
) -> Target:
    """A target rounded by GPTQ or SpQR; to nearest where too few tokens came by.

    Args:
        view: the Linear.
        scheme: its grid.
        hessian: of its inputs.
        moments: its mean, if anything was seen.
        recipe: method and options.
        shared: the same for all Linears that share this Hessian.
    """
    diagonal = None if moments is None else moments.diagonal()
    missing = too_few(hessian.tokens, view, recipe)
    if moments is None or missing:
        note = f"rounded to nearest: {missing or 'saw no tokens'}"
        return round_to_nearest(view, scheme, recipe.grid_fit, diagonal, note)
    weight = view.weight.to(torch.float32, copy=True)
    method = spqr if recipe.keeps_outliers else gptq
    try:
        rounded = method(weight, moments, scheme, recipe, recipe.grid_fit, shared)
    except NonFiniteError as error:
        raise NonFiniteError(f"{view.name}: {error}") from error
    if (rounded.weight.dequantize() - weight).square().sum() > weight.square().sum():
        # Farther off than no weight at all: whatever the cause, the user shall have a model that works.
        note = "rounded to nearest: error feedback diverged"
        return round_to_nearest(view, scheme, recipe.grid_fit, diagonal, note)
    note = "" if rounded.damping == recipe.damping else f"damping raised to {rounded.damping:g}"
    base = rounded.compensated if recipe.tuned else weight
    return Target(view, weight, base, rounded.start, rounded.weight, note=note)
