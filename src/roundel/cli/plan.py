"""`roundel plan`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

import roundel
from roundel.cli.display import out, terminal_progress
from roundel.cli.quantize import (
    AllowQuantizedOption,
    BaseOption,
    BatchSizeOption,
    BlocksOption,
    EncodingOption,
    ItersOption,
    LengthOption,
    MethodChoice,
    RevisionOption,
    SamplesOption,
    StreamChoice,
    choose_recipe,
    streams_of,
)
from roundel.words import size

if TYPE_CHECKING:
    from roundel.engine.plan import Plan
    from roundel.engine.trial import Trial


def plan_command(
    model: Annotated[str, typer.Argument(help="Model folder, .gguf file or hub id.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder that would be written.")] = Path(
        "quantized"
    ),
    recipe: Annotated[str | None, typer.Option(help="Name of a shipped recipe or a YAML file.")] = None,
    method: Annotated[MethodChoice | None, typer.Option(help="How the integers are chosen.")] = None,
    calibration: Annotated[str | None, typer.Option(help="As for `roundel quantize`.")] = None,
    encoding: EncodingOption = None,
    nsamples: SamplesOption = None,
    seqlen: LengthOption = None,
    iters: ItersOption = None,
    batch_size: BatchSizeOption = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe.")
    ] = None,
    stream_to_disk: Annotated[StreamChoice | None, typer.Option(help="As for `roundel quantize`.")] = None,
    low_memory: Annotated[bool, typer.Option(help="As for `roundel quantize`.")] = False,
    trial: Annotated[bool, typer.Option(help="Try one block, to measure time and memory.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, xpu or mps.")] = "auto",
    blocks: BlocksOption = None,
    revision: RevisionOption = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run modeling code of the model.")] = False,
    allow_quantized: AllowQuantizedOption = False,
    base: BaseOption = None,
) -> None:
    """Say what a run will need: memory part by part, disk, time; nothing is written."""
    given = {
        "method": method.value if method else None,
        "calibration": calibration,
        "encoding": encoding,
        "nsamples": nsamples,
        "seqlen": seqlen,
        "iters": iters,
        "batch_size": batch_size,
    }
    chosen = choose_recipe(recipe, given, settings)
    if low_memory:
        chosen = chosen.with_little_device_memory()
    counted, tried = roundel.plan(
        model,
        chosen,
        output=output,
        device=device,
        streams=streams_of(stream_to_disk),
        blocks=blocks,
        revision=revision,
        trust_remote_code=trust_remote_code,
        allow_quantized=allow_quantized,
        base=base,
        trial=trial,
        progress=terminal_progress(stoppable=True),
    )
    out.print(_table(counted))
    out.print(counted.words, soft_wrap=True)
    if tried is not None:
        out.print(_words(tried), soft_wrap=True)
    if counted.free_disk is not None and counted.disk > counted.free_disk:
        out.print(counted.disk_words, soft_wrap=True)
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
    if counted.checking:
        table.add_row("afterwards: writing, and reading back", size(counted.checking))
    table.add_row("output folder", size(counted.output))
    table.add_row("disk in all", size(counted.disk))
    return table


def _words(tried: "Trial") -> str:
    return (
        f"One block tried: {_time(tried.block_seconds)} a block, {_time(tried.seconds)} in all, give or take "
        f"{tried.spread:.0%}; memory {size(tried.peak)} at most, from the measured peak"
    )


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
