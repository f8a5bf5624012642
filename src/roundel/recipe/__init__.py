"""Everything that decides a result, as data: the `Recipe`, and the files that it is read from."""

from roundel.methods.registry import MethodName
from roundel.recipe.ladder import CHOSEN_KEYS
from roundel.recipe.loading import load_settings, parse_assignments, recipe_names
from roundel.recipe.recipe import FormatName, Recipe
from roundel.recipe.work import Work

__all__ = [
    "CHOSEN_KEYS",
    "FormatName",
    "MethodName",
    "Recipe",
    "Work",
    "load_settings",
    "parse_assignments",
    "recipe_names",
]
