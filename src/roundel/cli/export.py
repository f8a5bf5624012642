"""`roundel export`."""

from pathlib import Path
from typing import Annotated

import typer

import roundel
from roundel.cli.display import out, terminal_progress
from roundel.cli.options import BlocksOption, TrustOption
from roundel.formatting import size
from roundel.recipe import FormatName


def export_command(
    folder: Annotated[Path, typer.Argument(help="A folder that roundel quantize, sweep or export wrote.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")],
    format: Annotated[FormatName, typer.Option(help="Container of the output.")],
    like: Annotated[
        Path | None,
        typer.Option(
            help="GGUF file that llama.cpp's converter made of the same model: names and metadata of a GGUF."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what roundel wrote there already.")] = False,
    blocks: BlocksOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Write a quantized folder in another format, with the same weights to the last bit, or say why that cannot be."""
    manifest = roundel.export(
        folder,
        format,
        output,
        like=like,
        overwrite=overwrite,
        blocks=blocks,
        trust_remote_code=trust_remote_code,
        progress=terminal_progress(),
    )
    out.print(
        f"{manifest['bits_per_weight']:.3f} bits per weight, {manifest['bits_per_parameter']:.3f} bits per parameter "
        f"of the whole, {size(manifest['file_bytes'])} of weights"
    )
    out.print(f"Written to {output}", soft_wrap=True)
