"""`roundel sweep`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import roundel
from roundel.cli.display import first_rank, out, terminal_progress
from roundel.cli.groups import with_groups
from roundel.cli.launch import on_ranks
from roundel.cli.options import (
    DeviceOption,
    ProcessesOption,
    data_settings,
    joined_settings,
    opening,
    streams,
    tuning_settings,
    writing,
)
from roundel.errors import RecipeError
from roundel.formatting import size
from roundel.recipe import Recipe, load_settings


@with_groups(data=data_settings, tuning=tuning_settings, write=writing, where=streams, model_options=opening)
def sweep_command(
    model: Annotated[str, typer.Argument(help="Model folder, .gguf file or hub id.")],
    recipes: Annotated[
        str,
        typer.Option(metavar="A,B,...", help="Names of shipped recipes, or YAML files, with commas between."),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder in which every recipe writes one of its name.")
    ],
    data: dict[str, Any],
    tuning: dict[str, Any],
    write: dict[str, Any],
    where: dict[str, Any],
    model_options: dict[str, Any],
    calibration: Annotated[
        str | None, typer.Option(help="As for `roundel quantize`; for all recipes.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of all recipes, e.g. --set seed=1."),
    ] = None,
    nproc: ProcessesOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Quantize a model with several recipes at once; what they have in common is computed once."""
    chosen = [_recipe(name.strip(), settings, data, tuning) for name in recipes.split(",") if name.strip()]
    if not chosen:
        raise RecipeError(f"--recipes {recipes!r} names none: names with commas between are expected")
    on_ranks(nproc)
    manifests = roundel.sweep(
        model,
        chosen,
        output,
        calibration=calibration,
        device=device,
        streams=roundel.StreamOptions(**where),
        progress=terminal_progress(stoppable=True),
        **write,
        **model_options,
    )
    if first_rank():
        out.print(_table(manifests))
        out.print(f"Written to {output}", soft_wrap=True)


def _recipe(
    name: str, settings: list[str] | None, of_data: dict[str, Any], of_tuning: dict[str, Any]
) -> Recipe:
    """A recipe under its own name: that of its folder, whatever is set.

    Options count for those recipes that read them; --set counts for all.
    """
    recipe = Recipe.create(**load_settings(name))
    options = (of_data if recipe.needs_calibration else {}) | (of_tuning if recipe.tuned else {})
    changes = joined_settings(options, settings)
    return recipe.with_settings(**changes, name=recipe.name) if changes else recipe


def _table(manifests: dict[str, dict[str, Any]]) -> Table:
    table = Table(
        title="Mean relative loss of the blocks before and after tuning",
        title_justify="left",
        title_style="dim",
    )
    for column in (
        "folder",
        "bits per parameter",
        "files",
        "bits per weight",
        "before",
        "after",
        "seconds in its blocks",
    ):
        table.add_column(column, justify="left" if column == "folder" else "right")
    for name, manifest in manifests.items():
        blocks = manifest["blocks"]
        table.add_row(
            name,
            f"{manifest['bits_per_parameter']:.3f}",
            size(manifest["file_bytes"]),
            f"{manifest['bits_per_weight']:.3f}",
            _mean([block["loss_start"] for block in blocks]),
            _mean([block["loss_end"] for block in blocks]),
            f"{sum(block['seconds'] for block in blocks):.0f}",
        )
    return table


def _mean(losses: list[float | None]) -> str:
    known = [loss for loss in losses if loss is not None]
    return f"{sum(known) / len(known):.3g}" if known else ""
