"""`roundel eval`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import roundel
from roundel.cli.display import first_rank, out, terminal_progress
from roundel.cli.launch import on_ranks
from roundel.cli.quantize import BlocksOption, RevisionOption
from roundel.errors import OutputError, RecipeError
from roundel.system.seal import Kind, check_place, write_sealed_json

if TYPE_CHECKING:
    from roundel.evaluation.interval import Interval
    from roundel.evaluation.quality import TextQuality

TextOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Local file (.txt .json .jsonl .csv .tsv .parquet, also packed) or folder, perhaps with a field "
        "(a.jsonl:body); wikitext2, ptb, ptb_new, c4, c4_new, or pydoc; several are welcome. Left out: wikitext2, or "
        "none where there are tasks."
    ),
]
WindowOption = Annotated[
    int | None,
    typer.Option(
        min=2, help="Tokens per window; left out: 2048, or as many as the models and the text reach."
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option(min=1, help="At most so many windows of each text, and documents of each task."),
]
TextEncodingOption = Annotated[
    str | None,
    typer.Option(
        "--encoding",
        metavar="NAME",
        help="Encoding of local text files without a byte order mark: latin-1, cp1252, ...; left out: UTF-8.",
    ),
]
BosOption = Annotated[
    bool | None,
    typer.Option(
        "--bos/--no-bos",
        help="Begin every window with what the tokenizer puts in front of a text; left out: those of local texts, but "
        "not those of the papers' data sets.",
    ),
]
TasksOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="A,B,...",
        help="Suites (spqr-zero-shot, lrq-commonsense, autoround-11, mmlu) and tasks of lm-eval.",
    ),
]
FewshotOption = Annotated[
    int | None,
    typer.Option(min=0, help="Examples before each document of a task; left out: each task's own number."),
]
BatchOption = Annotated[int, typer.Option(min=1, help="Requests of a task in one pass.")]
DataOption = Annotated[
    Path | None, typer.Option(help="Folder with local copies of the data sets; left out: the hub's.")
]
CacheOption = Annotated[
    Path | None,
    typer.Option(help="Keep the original's predictions in this folder, for the next model against it."),
]
TopOption = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        min=1,
        help="Compare with the original's so many likeliest tokens and the mass of the rest; left out: with all.",
    ),
]
ByBlocksOption = Annotated[
    bool | None,
    typer.Option(
        "--block-by-block/--whole",
        help="Have one block's weights in memory at a time; left out: where the model is larger than memory.",
    ),
]


def evaluate_command(
    model: Annotated[str, typer.Argument(help="Model folder, quantized or not, .gguf file or hub id.")],
    reference: Annotated[
        str | None, typer.Option(help="The original, for KL divergence and top-1 agreement.")
    ] = None,
    text: TextOption = None,
    window: WindowOption = None,
    limit: LimitOption = None,
    add_bos: BosOption = None,
    encoding: TextEncodingOption = None,
    tasks: TasksOption = None,
    fewshot: FewshotOption = None,
    batch_size: BatchOption = 1,
    data_dir: DataOption = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
    per_token: Annotated[
        Path | None, typer.Option(help="Write every single prediction to this .parquet file.")
    ] = None,
    cache: CacheOption = None,
    top_k: TopOption = None,
    block_by_block: ByBlocksOption = None,
    nproc: Annotated[
        int | None, typer.Option(help="Share the windows among so many processes of this machine.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, xpu or mps.")] = "auto",
    blocks: BlocksOption = None,
    revision: RevisionOption = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run modeling code of the model.")] = False,
) -> None:
    """Perplexity on held-out text, and the distance from the original."""
    if json_file is not None:
        check_file(json_file, "figures")
    if per_token is not None:
        check_file(per_token, "predictions")
    on_ranks(nproc)
    found = roundel.evaluate(
        model,
        text=chosen_texts(text, tasks),
        tasks=chosen_tasks(tasks),
        fewshot=fewshot,
        batch_size=batch_size,
        reference=reference,
        window=window,
        limit=limit,
        add_bos=add_bos,
        encoding=encoding,
        data_dir=data_dir,
        per_token=per_token,
        cache=cache,
        top_k=top_k,
        block_by_block=block_by_block,
        blocks=blocks,
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
        progress=terminal_progress(),
    )
    if not first_rank():
        return
    for quality in found.texts:
        _print_text(quality, Path(model).name)
    if found.tasks:
        out.print(_tasks_table(found.tasks, Path(model).name, reference is not None))
    if found.activations:
        out.print(f"Quantized in this model: {found.activations}", soft_wrap=True)
    if json_file is not None:
        write_sealed_json(json_file, "figures", found.plain(), indent=1)


def chosen_texts(text: list[str] | None, tasks: list[str] | None) -> list[str]:
    """WikiText-2, where nothing was asked for."""
    return text or ([] if tasks else ["wikitext2"])


def chosen_tasks(tasks: list[str] | None) -> list[str]:
    """Names with commas between.

    Raises:
        RecipeError: nothing but commas.
    """
    names = [name.strip() for part in tasks or [] for name in part.split(",") if name.strip()]
    if tasks and not names:
        raise RecipeError(f"--tasks {tasks[0]!r} names none: suites, or tasks of lm-eval, are wanted")
    return names


def check_file(path: Path, kind: Kind) -> None:
    """Refuse before the work what could not be written after it, or would replace somebody's file.

    Raises:
        OutputError: no file in an existing folder, or not one of this kind that Roundel wrote.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: the name of a file in an existing folder is wanted")
    check_place(path, kind)


def _print_text(quality: "TextQuality", name: str) -> None:
    table = Table(title=quality.convention, title_justify="left", title_style="dim")
    table.add_column("")
    table.add_column(name, justify="right")
    table.add_column("95 % interval", justify="right")

    def row(words: str, figure: "Interval | None", form: str) -> None:
        if figure is not None:
            table.add_row(words, *figure_words(figure, form))

    row("perplexity", quality.perplexity, ".4f")
    row("perplexity of the original", quality.reference_perplexity, ".4f")
    row("perplexity over that of the original", quality.perplexity_ratio, ".4f")
    if quality.kl is not None:
        row("KL to the original, nats per token", quality.kl.mean, ".5f")
        for words, value in (
            ("median", quality.kl.median),
            ("99 of 100", quality.kl.p99),
            ("largest", quality.kl.max),
        ):
            table.add_row(f"  of single tokens: {words}", f"{value:.5f}", "")
    row("top-1 agreement", quality.top1, ".2%")
    out.print(table)


def _tasks_table(tasks: list[dict[str, Any]], name: str, against: bool) -> Table:
    table = Table(
        title="Tasks, by lm-eval; after the sign its standard error", title_justify="left", title_style="dim"
    )
    for column in ("task", "metric", "documents", "examples", name):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    if against:
        table.add_column("original", justify="right")
        table.add_column("changed answers", justify="right")
    for task in tasks:
        flips = task["flips"]
        row = [
            task["task"],
            task["metric"],
            str(task["documents"]),
            _number(task["fewshot"]),
            score_words(task),
        ]
        if against:
            changed = f"{flips['share']:.1%} (lost {flips['lost']}, won {flips['won']})" if flips else "-"
            row += [score_words(task["reference"]), changed]
        table.add_row(*row)
    return table


def score_words(task: dict[str, Any]) -> str:
    """A task's value and its standard error."""
    return f"{task['value']:.4f}" + ("" if task["stderr"] is None else f" ± {task['stderr']:.4f}")


def _number(count: int | None) -> str:
    return "-" if count is None else str(count)


def figure_words(figure: "Interval", form: str) -> tuple[str, str]:
    """A figure, and its interval."""
    if figure.bounds is None:
        return f"{figure.value:{form}}", "-"
    low, high = figure.bounds
    return f"{figure.value:{form}}", f"{low:{form}} .. {high:{form}}"
