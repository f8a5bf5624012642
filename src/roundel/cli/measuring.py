"""Options and tables of the commands that measure: eval and compare."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from roundel.cli.options import (
    BlocksOption,
    DeviceOption,
    ModeOption,
    PackedOption,
    PickleOption,
    TrustOption,
)
from roundel.errors import OutputError, RecipeError
from roundel.system.seal import Kind, check_place

if TYPE_CHECKING:
    from roundel.evaluation.interval import Interval


def evaluation(
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Local file (.txt .json .jsonl .csv .tsv .parquet, also packed) or folder, perhaps with a field "
            "(a.jsonl:body); wikitext2, ptb, ptb_new, c4, c4_new, or pydoc; several are welcome. Left out: wikitext2, "
            "or none where there are tasks."
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            min=2, help="Tokens per window; left out: 2048, or as many as the models and the text reach."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="At most so many windows of each text, and documents of each task."),
    ] = None,
    add_bos: Annotated[
        bool | None,
        typer.Option(
            "--bos/--no-bos",
            help="Begin every window with what the tokenizer puts in front of a text; left out: those of local texts, "
            "but not those of the papers' data sets.",
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Encoding of local text files without a byte order mark: latin-1, cp1252, ...; left out: UTF-8.",
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B,...",
            help="Suites (spqr-zero-shot, lrq-commonsense, autoround-11, mmlu) and tasks of lm-eval.",
        ),
    ] = None,
    fewshot: Annotated[
        int | None,
        typer.Option(
            min=0, help="Examples before each document of a task; left out: each task's own number."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests of a task in one pass.")] = 1,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with local copies of the data sets; left out: the hub's.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Keep the original's predictions in this folder, for the next model against it."),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Compare with the original's so many likeliest tokens and the mass of the rest; left out: with all.",
        ),
    ] = None,
    block_by_block: Annotated[
        bool | None,
        typer.Option(
            "--block-by-block/--whole",
            help="Have one block's weights in memory at a time; left out: where the model is larger than memory.",
        ),
    ] = None,
    packed: PackedOption = None,
    mode: ModeOption = "exact",
    device: DeviceOption = "auto",
    blocks: BlocksOption = None,
    trust_remote_code: TrustOption = False,
    allow_pickle: PickleOption = False,
) -> dict[str, Any]:
    """On what models are measured, and how: keyword arguments of `roundel.evaluate`."""
    return {
        # WikiText-2, where nothing was asked for.
        "text": text or ([] if tasks else ["wikitext2"]),
        "window": window,
        "limit": limit,
        "add_bos": add_bos,
        "encoding": encoding,
        "tasks": _names(tasks),
        "fewshot": fewshot,
        "batch_size": batch_size,
        "data_dir": data_dir,
        "cache": cache,
        "top_k": top_k,
        "block_by_block": block_by_block,
        "packed": packed,
        "mode": mode,
        "device": device,
        "blocks": blocks,
        "trust_remote_code": trust_remote_code,
        "allow_pickle": allow_pickle,
    }


def _names(tasks: list[str] | None) -> list[str]:
    """Names with commas between.

    Raises:
        RecipeError: nothing but commas.
    """
    names = [name.strip() for part in tasks or [] for name in part.split(",") if name.strip()]
    if tasks and not names:
        raise RecipeError(f"--tasks {tasks[0]!r} names none: suites, or tasks of lm-eval, are expected")
    return names


def check_file(path: Path, kind: Kind) -> None:
    """Refuse before the work what could not be written after it, or would replace a file of the user's.

    Raises:
        OutputError: no file in an existing folder, or not one of this kind that Roundel wrote.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: the name of a file in an existing folder is expected")
    check_place(path, kind)


def format_score(task: dict[str, Any]) -> str:
    """A task's value and its standard error."""
    return f"{task['value']:.4f}" + ("" if task["stderr"] is None else f" ± {task['stderr']:.4f}")


def format_figure(figure: "Interval", form: str) -> tuple[str, str]:
    """A figure, and its interval."""
    if figure.bounds is None:
        return f"{figure.value:{form}}", "-"
    low, high = figure.bounds
    return f"{figure.value:{form}}", f"{low:{form}} .. {high:{form}}"
