"""`roundel compare`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import roundel
from roundel.cli.display import err, out, terminal_progress
from roundel.cli.groups import with_groups
from roundel.cli.measuring import check_file, evaluation, format_figure, format_score
from roundel.errors import OutputError
from roundel.formatting import size
from roundel.system.seal import write_sealed, write_sealed_json


@with_groups(how=evaluation)
def compare_command(
    models: Annotated[
        list[str], typer.Argument(help="Model folders, quantized or not, .gguf files or hub ids.")
    ],
    reference: Annotated[str, typer.Option(help="The original.")],
    how: dict[str, Any],
    page: Annotated[Path, typer.Option("-o", "--page", help="The page to write.")] = Path("comparison.html"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing page.")] = False,
) -> None:
    """Compare models with their original and with each other: one table and one page."""
    check_file(page, "comparison")
    if json_file is not None:
        check_file(json_file, "figures")
    if page.exists() and not overwrite:
        raise OutputError(f"{page} exists: choose another file with --page, or pass --overwrite")
    found = roundel.compare(models, reference, progress=terminal_progress(), **how)
    from roundel.report.comparison_page import render_comparison
    from roundel.report.page import available

    for number in range(len(found["reference"]["quality"]["texts"])):
        out.print(_table(found, number))
    if found["reference"]["quality"]["tasks"]:
        out.print(_tasks_table(found))
    for sentence in found["verdict"]:
        out.print(sentence, soft_wrap=True)
    if json_file is not None:
        write_sealed_json(json_file, "figures", found, indent=1)
    missing = available()
    if missing:
        err.print(missing, style="yellow")
        return
    write_sealed(page, "comparison", render_comparison(found))
    out.print(f"The page: {page}")


def _table(found: dict[str, Any], number: int) -> Table:
    from roundel.evaluation.interval import Interval

    original = found["reference"]
    convention = original["quality"]["texts"][number]["convention"]
    table = Table(title=convention, title_justify="left", title_style="dim")
    table.add_column("")
    for words in (
        "bits per parameter",
        "file",
        "perplexity",
        "KL to original",
        "95 % interval",
        "top-1 agreement",
    ):
        table.add_column(words, justify="right")
    for model in (original, *found["models"]):
        figures = model["quality"]["texts"][number]
        kl, top1 = Interval.read((figures["kl"] or {}).get("mean")), Interval.read(figures["top1"])
        table.add_row(
            model["name"],
            f"{model['bits_per_parameter']:.3f}",
            size(model["file_bytes"]),
            f"{figures['perplexity']['value']:.3f}",
            *(format_figure(kl, ".5f") if kl else ("", "")),
            f"{top1.value:.2%}" if top1 else "",
        )
    return table


def _tasks_table(found: dict[str, Any]) -> Table:
    from roundel.evaluation.tasks.results import without_parts

    table = Table(
        title="Tasks, by lm-eval; after the sign its standard error", title_justify="left", title_style="dim"
    )
    table.add_column("")
    for task in without_parts(found["reference"]["quality"]["tasks"]):
        table.add_column(f"{task['task']}, {task['metric']}, {task['documents']} documents", justify="right")
    for model in (found["reference"], *found["models"]):
        table.add_row(model["name"], *map(format_score, without_parts(model["quality"]["tasks"])))
    return table
