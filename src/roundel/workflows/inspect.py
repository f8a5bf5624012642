"""What a recipe would do with every matrix of a model; no weight is read."""

from roundel.formats import CONTAINERS
from roundel.formats.source_files import SourceFiles
from roundel.model.experts import rejoin
from roundel.recipe import Recipe
from roundel.records.outcome import LayerRecord
from roundel.workflows.decide import decide_on, find_readers
from roundel.workflows.request import ModelRequest


def inspect_request(request: ModelRequest, recipe: Recipe) -> list[LayerRecord]:
    """The coverage table of a model and a recipe, with the grids that layers would have.

    Raises:
        RoundelError: as `quantize` would before its work.
    """
    options, source = request.options, request.look()
    if source.read_from:
        options.listener.say(f"The original: {source.read_from}")
    container = CONTAINERS[recipe.format]
    _, coverage = decide_on(
        source.model,
        recipe,
        options.blocks,
        container,
        source.extra,
        SourceFiles(source.place, source.tokenizer),
    )
    options.listener.say(find_readers(coverage, recipe, source.model).summary)
    rejoin(source.model)
    return coverage.planned()
