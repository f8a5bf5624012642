"""`roundel plan`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import roundel
from roundel.cli.display import out, terminal_progress
from roundel.cli.groups import with_groups
from roundel.cli.options import (
    DeviceOption,
    MethodOption,
    RecipeOption,
    SettingsOption,
    WithinOption,
    data_settings,
    opening,
    streams,
    suited_recipe,
    tuning_settings,
)
from roundel.formatting import about, size

if TYPE_CHECKING:
    from roundel.engine.plan import Plan
    from roundel.engine.trial import Trial


@with_groups(data=data_settings, tuning=tuning_settings, where=streams, model_options=opening)
def plan_command(
    model: Annotated[str, typer.Argument(help="Model folder, .gguf file or hub id.")],
    data: dict[str, Any],
    tuning: dict[str, Any],
    where: dict[str, Any],
    model_options: dict[str, Any],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder that would be written.")] = Path(
        "quantized"
    ),
    recipe: RecipeOption = None,
    method: MethodOption = None,
    calibration: Annotated[str | None, typer.Option(help="As for `roundel quantize`.")] = None,
    settings: SettingsOption = None,
    within: WithinOption = None,
    low_memory: Annotated[bool, typer.Option(help="As for `roundel quantize`.")] = False,
    trial: Annotated[bool, typer.Option(help="Try one block, to measure time and memory.")] = True,
    device: DeviceOption = "auto",
) -> None:
    """Say what a run will need: memory part by part, disk, time; nothing is written."""
    given = {"method": method, "calibration": calibration, **data, **tuning}
    chosen = suited_recipe(recipe, given, settings, within=within, device=device)
    if low_memory:
        chosen = chosen.with_little_device_memory()
    counted, tried = roundel.plan(
        model,
        chosen,
        output=output,
        device=device,
        streams=roundel.StreamOptions(**where),
        trial=trial,
        within=within,
        progress=terminal_progress(stoppable=True),
        **model_options,
    )
    out.print(_table(counted))
    out.print(counted.summary, soft_wrap=True)
    if tried is not None:
        out.print(_describe(tried), soft_wrap=True)
    if counted.free_disk is not None and counted.disk > counted.free_disk:
        out.print(counted.disk_shortage, soft_wrap=True)
    for advice in counted.advice:
        out.print(advice, soft_wrap=True)


def _table(counted: "Plan") -> Table:
    table = Table(title="Memory while blocks are quantized", title_justify="left")
    table.add_column("")
    table.add_column("bytes", justify="right")
    for name, count in counted.memory.items():
        table.add_row(name, size(count))
    table.add_section()
    table.add_row("together", size(sum(counted.memory.values())))
    if counted.sampling:
        table.add_row("before: the model writes calibration text", size(counted.sampling))
    if counted.reading:
        table.add_row("before: reading calibration text", size(counted.reading))
    if counted.outside:
        table.add_row("when the blocks are done: head and embedding", size(counted.outside))
    if counted.checking:
        table.add_row("afterwards: writing, and reading back", size(counted.checking))
    table.add_row("output folder", size(counted.output))
    table.add_row("disk in all", size(counted.disk))
    return table


def _describe(tried: "Trial") -> str:
    return (
        f"One block tried: {about(tried.block_seconds)} a block, {about(tried.seconds)} in all, from "
        f"opening to the report, give or take {tried.spread:.0%}; memory {size(tried.peak)} at most, from the "
        "measured peak"
    )
