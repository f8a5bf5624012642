"""`roundel eval`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import roundel
from roundel.cli.display import first_rank, out, terminal_progress
from roundel.cli.groups import with_groups
from roundel.cli.launch import on_ranks
from roundel.cli.measuring import check_file, evaluation, format_figure, format_score
from roundel.cli.options import ProcessesOption, RevisionOption
from roundel.system.seal import write_sealed_json

if TYPE_CHECKING:
    from roundel.evaluation.interval import Interval
    from roundel.evaluation.quality import TextQuality


@with_groups(how=evaluation)
def evaluate_command(
    model: Annotated[str, typer.Argument(help="Model folder, quantized or not, .gguf file or hub id.")],
    how: dict[str, Any],
    reference: Annotated[
        str | None, typer.Option(help="The original, for KL divergence and top-1 agreement.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
    per_token: Annotated[
        Path | None, typer.Option(help="Write every single prediction to this .parquet file.")
    ] = None,
    nproc: ProcessesOption = None,
    revision: RevisionOption = None,
) -> None:
    """Perplexity on held-out text, and the distance from the original."""
    if json_file is not None:
        check_file(json_file, "figures")
    if per_token is not None:
        check_file(per_token, "predictions")
    on_ranks(nproc)
    found = roundel.evaluate(
        model,
        reference=reference,
        per_token=per_token,
        revision=revision,
        progress=terminal_progress(),
        **how,
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


def _print_text(quality: "TextQuality", name: str) -> None:
    table = Table(title=quality.convention, title_justify="left", title_style="dim")
    table.add_column("")
    table.add_column(name, justify="right")
    table.add_column("95 % interval", justify="right")

    def row(words: str, figure: "Interval | None", form: str) -> None:
        if figure is not None:
            table.add_row(words, *format_figure(figure, form))

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
            format_score(task),
        ]
        if against:
            changed = f"{flips['share']:.1%} (lost {flips['lost']}, won {flips['won']})" if flips else "-"
            row += [format_score(task["reference"]), changed]
        table.add_row(*row)
    return table


def _number(count: int | None) -> str:
    return "-" if count is None else str(count)
