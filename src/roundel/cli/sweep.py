"""`roundel sweep`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import roundel
from roundel.cli.display import first_rank, out, terminal_progress
from roundel.cli.launch import on_ranks
from roundel.cli.quantize import (
    NOT_MEASURED,
    AllowQuantizedOption,
    BaseOption,
    BatchSizeOption,
    BlocksOption,
    EncodingOption,
    HeldOutOption,
    ItersOption,
    LengthOption,
    RevisionOption,
    SamplesOption,
    StreamChoice,
    joined_settings,
    streams_of,
)
from roundel.errors import RecipeError
from roundel.evaluation.defaults import HELD_OUT
from roundel.recipe import Recipe, load_settings
from roundel.words import size


def sweep_command(
    model: Annotated[str, typer.Argument(help="Model folder, .gguf file or hub id.")],
    recipes: Annotated[
        str,
        typer.Option(metavar="A,B,...", help="Names of shipped recipes, or YAML files, with commas between."),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder in which every recipe writes one of its name.")
    ],
    calibration: Annotated[
        str | None, typer.Option(help="As for `roundel quantize`; for all recipes.")
    ] = None,
    encoding: EncodingOption = None,
    nsamples: SamplesOption = None,
    seqlen: LengthOption = None,
    iters: ItersOption = None,
    batch_size: BatchSizeOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of all recipes, e.g. --set seed=1."),
    ] = None,
    nproc: Annotated[
        int | None, typer.Option(help="Share the work among so many processes of this machine.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, xpu or mps.")] = "auto",
    overwrite: Annotated[bool, typer.Option(help="Replace what roundel wrote there already.")] = False,
    restart: Annotated[
        bool, typer.Option(help="Begin again where an interrupted sweep could go on.")
    ] = False,
    stream_to_disk: Annotated[StreamChoice | None, typer.Option(help="As for `roundel quantize`.")] = None,
    blocks: BlocksOption = None,
    held_out: HeldOutOption = HELD_OUT,
    revision: RevisionOption = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run modeling code of the model.")] = False,
    allow_pickle: Annotated[bool, typer.Option(help="Read pickled checkpoints.")] = False,
    allow_quantized: AllowQuantizedOption = False,
    base: BaseOption = None,
) -> None:
    """Quantize a model with several recipes at once; what they have in common is computed once."""
    of_data = {"encoding": encoding, "nsamples": nsamples, "seqlen": seqlen}
    of_tuning = {"iters": iters, "batch_size": batch_size}
    chosen = [
        _recipe(name.strip(), settings, of_data, of_tuning) for name in recipes.split(",") if name.strip()
    ]
    if not chosen:
        raise RecipeError(f"--recipes {recipes!r} names none: names with commas between are wanted")
    on_ranks(nproc)
    manifests = roundel.sweep(
        model,
        chosen,
        output,
        calibration=calibration,
        device=device,
        overwrite=overwrite,
        restart=restart,
        streams=streams_of(stream_to_disk),
        blocks=blocks,
        held_out=None if held_out == NOT_MEASURED else held_out,
        revision=revision,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        allow_quantized=allow_quantized,
        base=base,
        progress=terminal_progress(stoppable=True),
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
        "bits per weight",
        "of the whole",
        "files",
        "before",
        "after",
        "seconds in its blocks",
    ):
        table.add_column(column, justify="left" if column == "folder" else "right")
    for name, manifest in manifests.items():
        blocks = manifest["blocks"]
        table.add_row(
            name,
            f"{manifest['bits_per_weight']:.3f}",
            f"{manifest['bits_per_parameter']:.3f}",
            size(manifest["file_bytes"]),
            _mean([block["loss_start"] for block in blocks]),
            _mean([block["loss_end"] for block in blocks]),
            f"{sum(block['seconds'] for block in blocks):.0f}",
        )
    return table


def _mean(losses: list[float | None]) -> str:
    known = [loss for loss in losses if loss is not None]
    return f"{sum(known) / len(known):.3g}" if known else ""
