"""The types that a recipe's mixture gives to a model's matrices, decided for all of them together."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from roundel.grid.block_types import BlockTypeName, fitting
from roundel.model.blocks import BlockStack
from roundel.model.roles import experts_of, heads_sharing, role_of
from roundel.model.text_path import text_model
from roundel.recipe import Recipe
from roundel.recipe.even import even_types
from roundel.recipe.mixtures import Matrix, Spot, base_of, is_even


def mixed_types(
    model: Any, stack: BlockStack, recipe: Recipe, routers: set[str], kept: Mapping[str, str]
) -> dict[str, BlockTypeName]:
    """By the names of the layers; those that the recipe skips, or says something else of, have none.

    Args:
        model: names and shapes are looked at.
        stack: its decoder blocks.
        recipe: with a mixture, or without one.
        routers: names of Linears that stay as they are.
        kept: types of matrices that can stay in their file as they are, by their names.
    """
    if recipe.mixture is None:
        return {}
    found = [*_in_blocks(model, stack, recipe, routers, kept), *_outside(model, recipe, kept)]
    matrices = [matrix for matrix in found if fitting("q8_0", matrix.shape[1])]
    base = base_of(recipe.mixture)
    if is_even(recipe.mixture):
        return even_types(base, matrices)
    return {matrix.name: base.type_of(matrix) for matrix in matrices}


def _in_blocks(
    model: Any, stack: BlockStack, recipe: Recipe, routers: set[str], kept: Mapping[str, str]
) -> Iterator[Matrix]:
    sharing, experts = heads_sharing(model), experts_of(model)
    falcon = text_model(model).config.get_text_config().model_type == "falcon"
    for index in range(len(stack)):
        for view in stack.linears(index):
            if view.name not in routers and recipe.leaves_to_mixture(view.name):
                spot = Spot(role_of(view.name), index, len(stack), sharing, experts, falcon)
                yield Matrix(view.name, view.shape, spot, kept=kept.get(view.name))


def _outside(model: Any, recipe: Recipe, kept: Mapping[str, str]) -> Iterator[Matrix]:
    """The embedding, and the head unless it is tied to it."""
    reader = text_model(model)
    head, embedding = reader.get_output_embeddings(), reader.get_input_embeddings()
    tied = head is not None and head.weight is embedding.weight and not recipe.wants_head
    if isinstance(embedding, nn.Embedding):
        name = name_of(model, embedding)
        out, width = embedding.weight.shape
        if recipe.leaves_to_mixture(name, embedding=True):
            yield Matrix(name, (out, width), None, head=tied, looked_up=True, kept=kept.get(name))
    if head is not None and not tied:
        name = name_of(model, head)
        out, width = head.weight.shape
        if recipe.leaves_to_mixture(name, head=True):
            yield Matrix(name, (out, width), None, head=True, kept=kept.get(name))


def name_of(model: nn.Module, module: nn.Module) -> str:
    """The full name of a module of a model."""
    return next(name for name, found in model.named_modules() if found is module)
