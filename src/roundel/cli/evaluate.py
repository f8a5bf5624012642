"""`roundel eval`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from roundel.api import evaluate
from roundel.cli.display import first_rank, out, terminal_progress
from roundel.cli.launch import on_ranks
from roundel.errors import OutputError


def evaluate_command(
    model: Annotated[str, typer.Argument(help="Model folder, .gguf file or hub id.")],
    reference: Annotated[
        str | None, typer.Option(help="The original, for KL divergence and top-1 agreement.")
    ] = None,
    text: Annotated[
        str, typer.Option(help="Local text file, wikitext2, ptb, ptb_new, c4, c4_new (hub) or pydoc.")
    ] = "wikitext2",
    window: Annotated[int, typer.Option(min=2, help="Tokens per window.")] = 2048,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many windows.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
    nproc: Annotated[
        int | None, typer.Option(help="Share the windows among so many processes of this machine.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, xpu or mps.")] = "auto",
    trust_remote_code: Annotated[bool, typer.Option(help="Run modeling code of the model.")] = False,
) -> None:
    """Perplexity on held-out text, and the distance from the original."""
    if json_file is not None and (json_file.is_dir() or not json_file.parent.is_dir()):
        raise OutputError(
            f"{json_file} cannot be written: the name of a file in an existing folder is wanted"
        )
    on_ranks(nproc)
    figures = evaluate(
        model,
        text=text,
        reference=reference,
        window=window,
        limit=limit,
        device=device,
        trust_remote_code=trust_remote_code,
        progress=terminal_progress(),
    )
    if not first_rank():
        return
    table = Table(title=figures["convention"], title_justify="left", title_style="dim")
    table.add_column("")
    table.add_column(Path(model).name, justify="right")
    table.add_row("perplexity", f"{figures['perplexity']:.4f}")
    if reference is not None:
        table.add_row("perplexity of the original", f"{figures['reference_perplexity']:.4f}")
        table.add_row("KL to the original, nats per token", f"{figures['kl']:.5f}")
        table.add_row("top-1 agreement", f"{figures['top1_agreement']:.2%}")
    out.print(table)
    if figures["activations"]:
        out.print(f"Quantized in this model: {figures['activations']}", highlight=False, soft_wrap=True)
    if json_file is not None:
        try:
            json_file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{json_file} cannot be written: {error}") from error
