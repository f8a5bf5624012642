"""`roundel bench`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import roundel
from roundel.cli.display import out, terminal_progress
from roundel.cli.measuring import check_file
from roundel.cli.options import ModeOption, PackedOption, PickleOption, TrustOption
from roundel.formatting import size
from roundel.system.seal import write_sealed_json


def bench_command(
    models: Annotated[
        list[str], typer.Argument(help="Model folders, quantized or not, .gguf files or hub ids.")
    ],
    prompt: Annotated[int, typer.Option(help="Tokens read at once, for the speed of prompts.")] = 512,
    context: Annotated[int, typer.Option(help="Tokens in the KV cache before the first new one.")] = 128,
    new: Annotated[int, typer.Option(help="Tokens made behind them, one after the other.")] = 64,
    rounds: Annotated[int, typer.Option(help="How often each model does both.")] = 5,
    threads: Annotated[
        int | None, typer.Option(help="Of each process; left out: as many as torch takes.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
    trust_remote_code: TrustOption = False,
    allow_pickle: PickleOption = False,
    packed: PackedOption = None,
    mode: ModeOption = "exact",
) -> None:
    """Tokens per second, bytes per token and memory of models on this machine's CPU, side by side."""
    if json_file is not None:
        check_file(json_file, "figures")
    found = roundel.bench(
        models,
        prompt=prompt,
        context=context,
        new=new,
        rounds=rounds,
        threads=threads,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        packed=packed,
        mode=mode,
        progress=terminal_progress(stoppable=True),
    )
    out.print(_table(found))
    if json_file is not None:
        write_sealed_json(json_file, "figures", found, indent=1)


def _table(found: dict[str, Any]) -> Table:
    threads = "thread" if found["threads"] == 1 else "threads"
    title = (
        f"Medians and extremes of {found['rounds']} rounds in turns, {found['threads']} {threads}; memory is read at "
        f"{_figure(found['bandwidth'], 1e9, '.1f')} GB/s"
    )
    table = Table(title=title, title_justify="left", title_style="dim")
    table.add_column("")
    for words in (
        f"new tokens per second, after {found['context_tokens']}",
        f"prompt tokens per second, of {found['prompt_tokens']}",
        "weights read per token",
        "of the bandwidth",
        "peak memory",
        "loaded",
        "libraries alone",
        "opened in",
    ):
        table.add_column(words, justify="right")
    for model in found["models"]:
        memory = model["memory"]
        table.add_row(
            model["name"],
            _figure(model["decode"], 1, ".1f"),
            _figure(model["prefill"], 1, ".0f"),
            size(model["bytes_per_token"]),
            f"{model['bandwidth_share']:.0%}",
            size(memory["peak"]),
            size(memory["loaded"]),
            size(memory["before_load"]),
            f"{model['load_seconds']:.1f} s",
        )
    return table


def _figure(spread: dict[str, float], unit: float, form: str) -> str:
    middle, low, high = (f"{spread[key] / unit:{form}}" for key in ("median", "low", "high"))
    return f"{middle} ({low} .. {high})"
