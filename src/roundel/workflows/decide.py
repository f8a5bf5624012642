"""What becomes of every matrix of a model, and whether the container carries it, before any weight is touched."""

from typing import Any

from roundel.engine.coverage import Coverage, decide
from roundel.errors import RoundelError
from roundel.formats import CONTAINERS, Container, Layer
from roundel.formats.readers import Readers
from roundel.formats.source_files import SourceFiles
from roundel.grid.scheme import Scheme
from roundel.model.blocks import BlockStack, find_blocks
from roundel.model.experts import divide, rejoin
from roundel.model.extra_tensors import ExtraTensors
from roundel.model.text_path import text_model
from roundel.recipe import Recipe
from roundel.records.outcome import LayerRecord


def decide_on(
    model: Any,
    recipe: Recipe,
    blocks: str | None,
    container: Container | None,
    extra: ExtraTensors,
    files: SourceFiles,
) -> tuple[BlockStack, Coverage]:
    """Find what there is to quantize in a model, and decide what becomes of it.

    Args:
        model: names, classes and shapes are looked at; tensors may be absent. Its stacked experts stay divided, if they
            are to be quantized.
        recipe: what to do.
        blocks: pattern of the decoder blocks' names; None: they are found.
        container: that is to carry the result; None: none.
        extra: tensors of the checkpoint for which the model has no place.
        files: that the model came from.

    Raises:
        RoundelError: the blocks are not found, the recipe does not fit the model, or the container not the recipe.
    """
    divide(model)
    try:
        stack = find_blocks(model, blocks)
        kept = {} if container is None else container.kept(model, files)
        coverage = decide(model, stack, recipe, extra.shapes, kept)
        if container is not None:
            container.check(_layers(coverage, recipe, model), model, recipe.activations, files)
    except RoundelError:
        rejoin(model)
        raise
    rejoin(model, keep={name.rpartition(".")[0] for name in coverage.schemes})
    return stack, coverage


def find_readers(coverage: Coverage, recipe: Recipe, model: Any) -> Readers:
    """Which clients will open a result that its container has not refused."""
    layers = _layers(coverage, recipe, model)
    return CONTAINERS[recipe.format].readers(layers, model, recipe.activations)


def _layers(coverage: Coverage, recipe: Recipe, model: Any) -> list[Layer]:
    return [
        layer_of(record, coverage.schemes[record.name], model, recipe, outliers=recipe.keeps_outliers)
        for record in coverage.layers
        if record.name in coverage.schemes
    ]


def layer_of(record: LayerRecord, scheme: Scheme, model: Any, recipe: Recipe, *, outliers: bool) -> Layer:
    """What a container is asked to carry of one layer.

    Args:
        record: of the layer.
        scheme: its grid.
        model: its names and shapes.
        recipe: says in which order columns are.
        outliers: whether it may have some; an embedding has none.
    """
    module = model.get_submodule(record.name)
    embedding = module is text_model(model).get_input_embeddings()
    shape = (record.shape[0], record.shape[1])
    return Layer(
        record.name,
        record.kind,
        shape,
        scheme,
        bias=getattr(module, "bias", None) is not None,
        outliers=outliers and not embedding,
        permuted=recipe.permutes(scheme, shape[1]) and not embedding,
        embedding=embedding,
    )
