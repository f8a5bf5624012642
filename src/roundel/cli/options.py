"""Options that several commands share: how models are opened, what they are quantized with, where the work is done."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from roundel.errors import RecipeError
from roundel.evaluation.defaults import HELD_OUT
from roundel.recipe import CHOSEN_KEYS, MethodName, Recipe, load_settings, parse_assignments

RevisionOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Branch, tag or commit of a hub id, which may also be ID@NAME."),
]
TrustOption = Annotated[bool, typer.Option(help="Run modeling code that comes with a model.")]
PickleOption = Annotated[bool, typer.Option(help="Read pickled checkpoints.")]
BlocksOption = Annotated[
    str | None,
    typer.Option(
        metavar="PATTERN",
        help="Names of the decoder blocks, or of their list, where they are not found: 'model.layers.*'.",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, xpu or mps.")]
ProcessesOption = Annotated[
    int | None, typer.Option(help="Share the work among so many processes of this machine.")
]
PackedOption = Annotated[
    bool | None,
    typer.Option(
        "--packed/--no-packed",
        help="Keep quantized weights packed in memory, and compute with them so; left out: where a model is stored in "
        "integers and there are kernels.",
    ),
]
ModeOption = Annotated[
    Literal["exact", "fast"],
    typer.Option(
        help="Of packed weights: exact multiplies as with decoded ones, fast rounds activations to 8 bits."
    ),
]
RecipeOption = Annotated[
    str | None, typer.Option(help="Name of a shipped recipe (see `roundel recipes`) or a YAML file.")
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any key of the recipe, e.g. --set lr=0.01."),
]
PrivateOption = Annotated[bool, typer.Option(help="Make the repository a private one.")]
_NOT_MEASURED = "none"


WithinOption = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Take no longer than 20m, 1.5h, ...: chooses iters, nsamples, seqlen and batch_size by what one block "
        "takes here.",
    ),
]
StreamName = Literal["float32", "bfloat16", "float16"]
MethodOption = Annotated[MethodName | None, typer.Option(help="How the integers are chosen.")]


def opening(
    blocks: BlocksOption = None,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    allow_pickle: PickleOption = False,
    allow_quantized: Annotated[
        bool, typer.Option("--allow-quantized", help="Take what Roundel wrote for an original, too.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Base model of a PEFT adapter, instead of the one that it names."),
    ] = None,
) -> dict[str, Any]:
    """How a model that is to be quantized is opened."""
    return {
        "blocks": blocks,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "allow_pickle": allow_pickle,
        "allow_quantized": allow_quantized,
        "base": base,
    }


def data_settings(
    encoding: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Encoding of text files without a byte order mark: latin-1, cp1252, utf-16-le, ...; left out: "
            "UTF-8.",
        ),
    ] = None,
    nsamples: Annotated[int | None, typer.Option(help="Samples of calibration text.")] = None,
    seqlen: Annotated[int | None, typer.Option(help="Tokens of each.")] = None,
) -> dict[str, Any]:
    """Keys of a recipe about calibration data."""
    return {"encoding": encoding, "nsamples": nsamples, "seqlen": seqlen}


def tuning_settings(
    iters: Annotated[int | None, typer.Option(help="Steps of tuning for each block.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples of a step.")] = None,
) -> dict[str, Any]:
    """Keys of a recipe about tuning."""
    return {"iters": iters, "batch_size": batch_size}


def streams(
    stream_to_disk: Annotated[
        StreamName | None,
        typer.Option(help="Keep the activations between blocks in files beside the output, as this type."),
    ] = None,
) -> dict[str, Any]:
    """Where the activations between blocks are: what `roundel.StreamOptions` are made of, when the work begins."""
    return {} if stream_to_disk is None else {"on_disk": True, "dtype": stream_to_disk}


def writing(
    overwrite: Annotated[bool, typer.Option(help="Replace what roundel wrote there already.")] = False,
    restart: Annotated[
        bool, typer.Option(help="Begin again where an interrupted run could be gone on with.")
    ] = False,
    like: Annotated[
        Path | None,
        typer.Option(
            help="GGUF file that llama.cpp's converter made of the same model: names and metadata of a GGUF."
        ),
    ] = None,
    held_out: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="Text on which the result is measured against the original, for its report, as for `roundel eval`; "
            "`none`: not at all.",
        ),
    ] = HELD_OUT,
) -> dict[str, Any]:
    """How output folders are written."""
    return {
        "overwrite": overwrite,
        "restart": restart,
        "like": like,
        "held_out": None if held_out == _NOT_MEASURED else held_out,
    }


def uploading(
    push_to_hub: Annotated[
        str | None,
        typer.Option(
            metavar="REPO",
            help="Upload the finished folder to this repository of the hub, with the token that huggingface_hub finds; "
            "seen to before the work.",
        ),
    ] = None,
    private: PrivateOption = False,
) -> dict[str, Any]:
    """Whether the folder goes to the hub."""
    return {"push_to_hub": push_to_hub, "private": private}


def choose_recipe(recipe: str | None, given: dict[str, Any], settings: list[str] | None) -> Recipe:
    """A named recipe with changes; without a name, the defaults of the method with changes."""
    changes = joined_settings(given, settings)
    if recipe is None:
        return Recipe.create(**changes)
    base = Recipe.create(**load_settings(recipe))
    return base.with_settings(**changes) if changes else base


def suited_recipe(
    recipe: str | None,
    given: dict[str, Any],
    settings: list[str] | None,
    *,
    within: str | None,
    device: str,
) -> Recipe:
    """As `choose_recipe`; on a CPU with the work that suits it, where neither recipe nor keys nor a time say how much.

    Raises:
        RecipeError: bad keys or values; a limit of time, and what it chooses, are both given.
    """
    chosen, keys = choose_recipe(recipe, given, settings), joined_settings(given, settings)
    fixed = [key for key in CHOSEN_KEYS if key in keys]
    if within is not None and fixed:
        raise RecipeError(
            f"--within chooses {', '.join(CHOSEN_KEYS)}, with {', '.join(fixed)} set beside it: leave either out"
        )
    if recipe is not None or within is not None:
        return chosen
    from roundel.system.devices import choose_device

    return chosen.on_cpu(keys) if choose_device(device).type == "cpu" else chosen


def joined_settings(given: dict[str, Any], settings: list[str] | None) -> dict[str, Any]:
    """Keys that have options of their own, None where they were not used, and those of --set.

    Raises:
        RecipeError: one is in both.
    """
    given = {key: value for key, value in given.items() if value is not None}
    assigned = parse_assignments(settings or [])
    for key in given.keys() & assigned.keys():
        option = key.replace("_", "-")
        raise RecipeError(f"{key} is given twice, by --{option} and --set {key}=...: one value is expected")
    return given | assigned
