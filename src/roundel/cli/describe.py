"""Recipes and grids in a line."""

from typing import TYPE_CHECKING

from roundel.methods.registry import METHODS
from roundel.recipe import Recipe

if TYPE_CHECKING:
    from roundel.records.outcome import LayerRecord


def describe_grid(grid: "Recipe | LayerRecord") -> str:
    """The grid of a recipe, or of a layer."""
    if grid.type is not None:
        return f"{grid.type}, {grid.bits} bit"
    group = "per channel" if grid.group_size == -1 else f"groups of {grid.group_size}"
    return f"{grid.bits} bit, {group}, {'symmetric' if grid.sym else 'asymmetric'}"


def describe_recipe(recipe: Recipe) -> str:
    """What a recipe does, in a line."""
    grid = f"mixture {recipe.mixture}" if recipe.mixture is not None else describe_grid(recipe)
    words = f"{recipe.method}, {grid}, {recipe.start} start"
    grids = recipe.activations
    if grids.inputs:
        words += f", inputs {grids.inputs.summary}"
    if grids.kv:
        words += f", KV cache {grids.kv.bits} bit"
    if recipe.tuned:
        words += f", {recipe.iters} iterations"
    if recipe.needs_calibration:
        words += f", {recipe.nsamples} samples of {recipe.seqlen} tokens"
    if recipe.target_bits is not None:
        words += f", outliers up to {recipe.target_bits:g} bits per weight"
    elif recipe.outliers is not None:
        words += f", {recipe.outliers:.2%} outliers"
    elif recipe.outlier_threshold is not None:
        words += f", outliers above {recipe.outlier_threshold:g}"
    elif METHODS[recipe.method].outliers:
        words += ", no outliers (--outliers or --target-bits decides how many)"
    return f"{words}, written as {recipe.format}"
