"""`roundel quantize`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import roundel
from roundel.cli.display import first_rank, out, terminal_progress
from roundel.cli.launch import on_ranks
from roundel.errors import RecipeError
from roundel.evaluation.defaults import HELD_OUT
from roundel.methods.registry import METHODS
from roundel.recipe import Recipe, load_settings, parse_assignments
from roundel.words import size

if TYPE_CHECKING:
    from roundel.records.outcome import LayerRecord

BlocksOption = Annotated[
    str | None,
    typer.Option(
        metavar="PATTERN",
        help="Names of the decoder blocks, or of their list, where they are not found: 'model.layers.*'.",
    ),
]

RevisionOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Branch, tag or commit of a hub id, which may also be ID@NAME."),
]
AllowQuantizedOption = Annotated[
    bool, typer.Option("--allow-quantized", help="Take what Roundel wrote for an original, too.")
]
BaseOption = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Base model of a PEFT adapter, instead of the one that it names."),
]
HeldOutOption = Annotated[
    str,
    typer.Option(
        metavar="TEXT",
        help="Text on which the result is measured against the original, for its report, as for `roundel eval`; "
        "`none`: not at all.",
    ),
]
EncodingOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Encoding of text files without a byte order mark: latin-1, cp1252, utf-16-le, ...; left out: UTF-8.",
    ),
]
SamplesOption = Annotated[int | None, typer.Option(help="Samples of calibration text.")]
LengthOption = Annotated[int | None, typer.Option(help="Tokens of each.")]
ItersOption = Annotated[int | None, typer.Option(help="Steps of tuning for each block.")]
BatchSizeOption = Annotated[int | None, typer.Option(help="Samples of a step.")]
NOT_MEASURED = "none"


class MethodChoice(StrEnum):
    """--method."""

    rtn = "rtn"
    gptq = "gptq"
    spqr = "spqr"
    signround = "signround"
    autoround = "autoround"
    flexround = "flexround"
    lrq = "lrq"


class StreamChoice(StrEnum):
    """--stream-to-disk."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class FormatChoice(StrEnum):
    """--format."""

    compressed_tensors = "compressed-tensors"
    roundel = "roundel"
    spqr = "spqr"
    dense = "dense"


def quantize_command(
    model: Annotated[str, typer.Argument(help="Model folder, .gguf file or hub id.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    recipe: Annotated[
        str | None, typer.Option(help="Name of a shipped recipe (see `roundel recipes`) or a YAML file.")
    ] = None,
    method: Annotated[MethodChoice | None, typer.Option(help="How the integers are chosen.")] = None,
    bits: Annotated[int | None, typer.Option(help="Bits per code, 2 to 8.")] = None,
    group_size: Annotated[int | None, typer.Option(help="Weights per scale; -1 = one per channel.")] = None,
    sym: Annotated[
        bool | None, typer.Option("--sym/--asym", help="Grid without or with zero points.")
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
    format: Annotated[FormatChoice | None, typer.Option(help="Container of the output.")] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Texts, chats or rows (.txt .json .jsonl .csv .tsv .parquet, also packed), token ids (.pt), folders "
            "of them, a hub data set, `self` or `pydoc`; perhaps with fields and numbers of samples: "
            "a.jsonl:body:100,b.txt:28."
        ),
    ] = None,
    encoding: EncodingOption = None,
    nsamples: SamplesOption = None,
    seqlen: LengthOption = None,
    iters: ItersOption = None,
    batch_size: BatchSizeOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe, e.g. --set lr=0.01."),
    ] = None,
    nproc: Annotated[
        int | None, typer.Option(help="Share the work among so many processes of this machine.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, xpu or mps.")] = "auto",
    overwrite: Annotated[bool, typer.Option(help="Replace an output folder that roundel wrote.")] = False,
    restart: Annotated[
        bool, typer.Option(help="Begin again where an interrupted run could be gone on with.")
    ] = False,
    stream_to_disk: Annotated[
        StreamChoice | None,
        typer.Option(help="Keep the activations between blocks in files beside the output, as this type."),
    ] = None,
    low_memory: Annotated[
        bool,
        typer.Option(
            help="Little device memory: activations in main memory, one sample at a time, accumulated."
        ),
    ] = False,
    blocks: BlocksOption = None,
    held_out: HeldOutOption = HELD_OUT,
    revision: RevisionOption = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run modeling code of the model.")] = False,
    allow_pickle: Annotated[bool, typer.Option(help="Read pickled checkpoints.")] = False,
    allow_quantized: AllowQuantizedOption = False,
    base: BaseOption = None,
) -> None:
    """Quantize a model and write it, checked against the tuned weights, to a new folder."""
    given: dict[str, Any] = {
        "method": method.value if method else None,
        "bits": bits,
        "group_size": group_size,
        "sym": sym,
        "outliers": outliers,
        "target_bits": target_bits,
        "act_bits": act_bits,
        "kv_bits": kv_bits,
        "format": format.value if format else None,
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
    on_ranks(nproc)
    progress = terminal_progress(stoppable=True)
    from roundel.calibration.gather import for_sources

    told = for_sources(chosen, None) if chosen.needs_calibration else chosen
    progress.say(f"Recipe {chosen.name}: {recipe_words(told)}")
    result = roundel.quantize(
        model,
        chosen,
        output=output,
        device=device,
        overwrite=overwrite,
        restart=restart,
        stream=True,
        streams=streams_of(stream_to_disk),
        blocks=blocks,
        held_out=None if held_out == NOT_MEASURED else held_out,
        revision=revision,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        allow_quantized=allow_quantized,
        base=base,
        progress=progress,
    )
    if first_rank():
        _print_result(result)


def choose_recipe(recipe: str | None, given: dict[str, Any], settings: list[str] | None) -> Recipe:
    """A named recipe with changes; without a name, the defaults of the method with changes."""
    changes = joined_settings(given, settings)
    if recipe is None:
        return Recipe.create(**changes)
    base = Recipe.create(**load_settings(recipe))
    return base.with_settings(**changes) if changes else base


def joined_settings(given: dict[str, Any], settings: list[str] | None) -> dict[str, Any]:
    """Keys that have options of their own, None where they were not used, and those of --set.

    Raises:
        RecipeError: one is in both.
    """
    given = {key: value for key, value in given.items() if value is not None}
    assigned = parse_assignments(settings or [])
    for key in given.keys() & assigned.keys():
        option = key.replace("_", "-")
        raise RecipeError(f"{key} is given twice, by --{option} and --set {key}=...: one value is wanted")
    return given | assigned


def streams_of(choice: StreamChoice | None) -> "roundel.StreamOptions":
    """What --stream-to-disk says."""
    return (
        roundel.StreamOptions() if choice is None else roundel.StreamOptions(on_disk=True, dtype=choice.value)
    )


def grid_words(grid: "Recipe | LayerRecord") -> str:
    """The grid of a recipe, or of a layer."""
    group = "per channel" if grid.group_size == -1 else f"groups of {grid.group_size}"
    return f"{grid.bits} bit, {group}, {'symmetric' if grid.sym else 'asymmetric'}"


def recipe_words(recipe: Recipe) -> str:
    """What a recipe does, in a line."""
    words = f"{recipe.method}, {grid_words(recipe)}, {recipe.start} start"
    grids = recipe.activations
    if grids.inputs:
        words += f", inputs {grids.inputs.words}"
    if grids.kv:
        words += f", KV cache {grids.kv.bits} bit"
    if recipe.tuned:
        words += f", {recipe.iters} iterations"
    if recipe.needs_calibration:
        words += f", {recipe.nsamples} samples of {recipe.seqlen} tokens"
    if recipe.target_bits is not None:
        words += f", outliers up to {recipe.target_bits:g} bits per weight"
    elif recipe.outliers is not None:
        words += f", {recipe.outliers:.2%} outliers"
    elif recipe.outlier_threshold is not None:
        words += f", outliers above {recipe.outlier_threshold:g}"
    elif METHODS[recipe.method].outliers:
        words += ", no outliers (--outliers or --target-bits decides how many)"
    return f"{words}, written as {recipe.format}"


def _print_result(result: "roundel.Quantized") -> None:
    manifest = result.manifest
    written = sum(file.stat().st_size for file in result.output.iterdir()) if result.output else 0
    losses = [b for b in manifest["blocks"] if b["loss_start"] is not None]
    count = sum(layer["bits"] is not None for layer in manifest["layers"])
    whole = f", {manifest['bits_per_parameter']:.3f} bits per parameter of the whole" if written else ""
    out.print(
        f"{count} Linears at {manifest['bits_per_weight']:.3f} bits per weight "
        f"({manifest['paper_bits']:.3f} as papers count){whole}, {size(written)} on disk, {manifest['seconds']:.0f} s, "
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
