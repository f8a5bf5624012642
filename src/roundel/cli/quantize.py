"""`roundel quantize`."""

from pathlib import Path
from typing import Annotated, Any

import typer

import roundel
from roundel.cli.describe import describe_recipe
from roundel.cli.display import first_rank, out, terminal_progress
from roundel.cli.groups import with_groups
from roundel.cli.launch import on_ranks
from roundel.cli.options import (
    DeviceOption,
    MethodOption,
    ProcessesOption,
    RecipeOption,
    SettingsOption,
    WithinOption,
    data_settings,
    opening,
    streams,
    suited_recipe,
    tuning_settings,
    uploading,
    writing,
)
from roundel.formatting import size
from roundel.grid.block_types import BlockTypeName
from roundel.recipe import FormatName
from roundel.recipe.mixtures import MixtureName


def _grid_settings(
    method: MethodOption = None,
    bits: Annotated[int | None, typer.Option(help="Bits per code, 2 to 8.")] = None,
    group_size: Annotated[int | None, typer.Option(help="Weights per scale; -1 = one per channel.")] = None,
    sym: Annotated[
        bool | None, typer.Option("--sym/--asym", help="Grid without or with zero points.")
    ] = None,
    type: Annotated[
        BlockTypeName | None, typer.Option(help="Type of GGUF files, which fixes bits and groups.")
    ] = None,
    mixture: Annotated[
        MixtureName | None, typer.Option(help="llama.cpp's rule for which matrix gets which type.")
    ] = None,
    outliers: Annotated[
        str | None, typer.Option(help="Share of weights that spqr keeps in 16 bits: 0.005 or 0.5%.")
    ] = None,
    target_bits: Annotated[
        float | None, typer.Option(help="Stored bits per weight: spqr keeps as many outliers as fit.")
    ] = None,
    act_bits: Annotated[
        int | None, typer.Option(help="Bits of the inputs of all quantized Linears; left out: not quantized.")
    ] = None,
    kv_bits: Annotated[
        int | None, typer.Option(help="Bits of keys and values; left out: not quantized.")
    ] = None,
    format: Annotated[FormatName | None, typer.Option(help="Container of the output.")] = None,
) -> dict[str, Any]:
    """Keys of a recipe about the method and its grids."""
    return {
        "method": method,
        "bits": bits,
        "group_size": group_size,
        "sym": sym,
        "type": type,
        "mixture": mixture,
        "outliers": outliers,
        "target_bits": target_bits,
        "act_bits": act_bits,
        "kv_bits": kv_bits,
        "format": format,
    }


@with_groups(
    grids=_grid_settings,
    data=data_settings,
    tuning=tuning_settings,
    write=writing,
    upload=uploading,
    where=streams,
    model_options=opening,
)
def quantize_command(
    model: Annotated[str, typer.Argument(help="Model folder, .gguf file or hub id.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    grids: dict[str, Any],
    data: dict[str, Any],
    tuning: dict[str, Any],
    write: dict[str, Any],
    upload: dict[str, Any],
    where: dict[str, Any],
    model_options: dict[str, Any],
    recipe: RecipeOption = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Texts, chats or rows (.txt .json .jsonl .csv .tsv .parquet, also packed), token ids (.pt), folders "
            "of them, a hub data set, `self` or `pydoc`; perhaps with fields and numbers of samples: "
            "a.jsonl:body:100,b.txt:28."
        ),
    ] = None,
    settings: SettingsOption = None,
    within: WithinOption = None,
    low_memory: Annotated[
        bool,
        typer.Option(
            help="Little device memory: activations in main memory, one sample at a time, accumulated."
        ),
    ] = False,
    nproc: ProcessesOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Quantize a model and write it, checked against the tuned weights, to a new folder."""
    given = {**grids, "calibration": calibration, **data, **tuning}
    chosen = suited_recipe(recipe, given, settings, within=within, device=device)
    if low_memory:
        chosen = chosen.with_little_device_memory()
    on_ranks(nproc)
    progress = terminal_progress(stoppable=True)
    from roundel.calibration.gather import for_sources

    told = for_sources(chosen, None) if chosen.needs_calibration else chosen
    progress.say(f"Recipe {chosen.name}: {describe_recipe(told)}")
    result = roundel.quantize(
        model,
        chosen,
        output=output,
        device=device,
        stream=True,
        streams=roundel.StreamOptions(**where),
        within=within,
        progress=progress,
        **write,
        **upload,
        **model_options,
    )
    if first_rank():
        _print_result(result)


def _print_result(result: "roundel.Quantized") -> None:
    manifest = result.manifest
    written = sum(file.stat().st_size for file in result.output.iterdir()) if result.output else 0
    losses = [b for b in manifest["blocks"] if b["loss_start"] is not None]
    count = sum(layer["bits"] is not None for layer in manifest["layers"])
    whole = f"{manifest['bits_per_parameter']:.3f} bits per parameter of the whole, " if written else ""
    out.print(
        f"{whole}{size(written)} on disk; {count} Linears at {manifest['bits_per_weight']:.3f} bits per weight "
        f"({manifest['paper_bits']:.3f} as papers count); {manifest['seconds']:.0f} s, "
        f"peak memory {size(manifest['peak_memory_bytes'])}",
    )
    if losses:
        before = sum(b["loss_start"] for b in losses) / len(losses)
        after = sum(b["loss_end"] for b in losses) / len(losses)
        kept = sum(b["kept"] == "start" for b in losses)
        out.print(
            f"Mean relative block loss {before:.3g} before tuning, {after:.3g} after; "
            f"{kept} of {len(losses)} blocks kept their start; {manifest['trained_share']:.0%} as many numbers "
            "learned as there are weights",
            soft_wrap=True,
        )
    out.print(f"Written to {result.output}", soft_wrap=True)
    if result.uploaded:
        out.print(f"Uploaded to {result.uploaded}", soft_wrap=True)
