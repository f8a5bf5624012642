"""`roundel inspect`: before a run what will become of every matrix of a model, after it what has."""

import re
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import roundel
from roundel.cli.describe import describe_grid, describe_recipe
from roundel.cli.display import out, terminal_progress
from roundel.cli.groups import with_groups
from roundel.cli.options import MethodOption, RecipeOption, SettingsOption, choose_recipe, opening
from roundel.errors import FormatError, RecipeError
from roundel.formatting import size

if TYPE_CHECKING:
    from roundel.records.folder import FolderContents
    from roundel.records.outcome import LayerRecord


@with_groups(model_options=opening)
def inspect_command(
    model: Annotated[
        str, typer.Argument(help="Model folder, .gguf file or hub id; or a folder that Roundel wrote.")
    ],
    model_options: dict[str, Any],
    recipe: RecipeOption = None,
    method: MethodOption = None,
    settings: SettingsOption = None,
) -> None:
    """Show every Linear of a model and what a recipe will do with it; of a quantized folder, what was done.

    What is left out is listed with the reason. Before a run no weight is read.
    """
    from roundel.model.checkpoint import is_own
    from roundel.records.folder import read_contents
    from roundel.records.outcome import summary
    from roundel.system.surroundings import undisturbed
    from roundel.workflows.open import find_model

    progress = terminal_progress()
    revision, pickle = model_options.pop("revision"), model_options["allow_pickle"]
    place: Any = undisturbed(find_model)(model, revision, allow_pickle=pickle, progress=progress)
    if is_own(place.path) and not model_options["allow_quantized"]:
        if recipe or method or settings or model_options["blocks"]:
            raise RecipeError(
                f"{model} is quantized already, so there is nothing for a recipe to decide: leave recipe and blocks "
                "out, or name the original model"
            )
        _show_folder(read_contents(place.path))
        return
    chosen = choose_recipe(recipe, {"method": method}, settings)
    problem = None
    try:
        layers = roundel.inspect(place, chosen, progress=progress, **model_options)
    except FormatError as error:
        # What there is in the model is worth seeing all the same.
        dense = chosen.with_settings(format="dense")
        layers, problem = roundel.inspect(place, dense, **model_options), error
    out.print(_decisions(layers, chosen.method))
    out.print(f"Recipe {chosen.name}: {describe_recipe(chosen)}", soft_wrap=True)
    out.print(summary(layers), soft_wrap=True)
    if problem is not None:
        raise problem


def _decisions(layers: "list[LayerRecord]", method: str) -> Table:
    table = Table(title="What will become of every matrix", title_justify="left")
    for column in ("block", "layer", "kind", "shape", "will be", "stays, because"):
        table.add_column(column, justify="right" if column in ("block", "shape") else "left")
    for cells, alike in groupby(layers, key=lambda layer: (_family(layer), _decision(layer, method))):
        members = list(alike)
        first, (_, (decision, reason)) = members[0], cells
        name = first.name
        if len(members) > 1:
            name = f"{name}-{members[-1].name.rpartition('.')[2]}"
        block = "" if first.block is None else str(first.block)
        table.add_row(block, name, first.kind, "x".join(map(str, first.shape)), decision, reason)
    return table


def _family(layer: "LayerRecord") -> object:
    """The same for the experts of one stack: they are shown in one row."""
    from roundel.records.outcome import EXTRA

    if layer.kind == EXTRA:
        return re.sub(r"\.experts\.\d+\.", ".experts.#.", layer.name), layer.shape
    return (layer.name.rpartition(".")[0], layer.shape) if layer.kind == "Expert" else layer.name


def _decision(layer: "LayerRecord", method: str) -> tuple[str, str]:
    if layer.bits is None:
        return "", layer.reason
    return f"{method}, {describe_grid(layer)}", ""


def _show_folder(contents: "FolderContents") -> None:
    from roundel.records.outcome import summary

    out.print(_layers(contents))
    manifest = contents.manifest
    out.print(
        f"{manifest['source']} quantized with {manifest['recipe']['name']}: "
        f"{contents.bits_per_parameter:.3f} bits per parameter of the whole, {size(contents.file_bytes)}; "
        f"{manifest['bits_per_weight']:.3f} bits per quantized weight ({manifest['paper_bits']:.3f} as papers count), "
        f"{manifest['outlier_share']:.3%} outliers",
        soft_wrap=True,
    )
    out.print(summary(contents.layers), soft_wrap=True)


def _layers(contents: "FolderContents") -> Table:
    table = Table(title="Layers", title_justify="left")
    columns = [
        "layer",
        "shape",
        "bits",
        "group",
        "grid",
        "outliers",
        "bits/weight",
        "error",
        "tokens",
        "size",
        "",
    ]
    if any(layer.inputs for layer in contents.layers):
        columns.insert(-1, "inputs")
    for column in columns:
        left = column in ("layer", "grid", "inputs", "")
        table.add_column(column, justify="left" if left else "right", no_wrap=column == "layer")
    for layer in contents.layers:
        stored = size(contents.stored_bytes.get(layer.name, 0))
        shape = "x".join(map(str, layer.shape))
        inputs = [layer.inputs] if "inputs" in columns else []
        tokens = "" if layer.tokens is None else str(layer.tokens)
        words = "; ".join(part for part in (layer.reason, layer.note, layer.smoothing) if part)
        table.add_row(layer.name, shape, *_grid_cells(layer), tokens, stored, *inputs, words)
    return table


def _grid_cells(layer: "LayerRecord") -> list[str]:
    if layer.bits is None:
        return [""] * 6
    group = "channel" if layer.group_size == -1 else str(layer.group_size)
    grid = layer.type or ("sym" if layer.sym else "asym")
    assert layer.outliers is not None
    assert layer.bits_per_weight is not None
    assert layer.error is not None
    return [
        str(layer.bits),
        group,
        grid,
        f"{layer.outliers:.2%}",
        f"{layer.bits_per_weight:.3f}",
        f"{layer.error:.2e}",
    ]
