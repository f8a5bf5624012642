"""`roundel push`."""

from typing import Annotated

import typer

import roundel
from roundel.cli.display import out, terminal_progress
from roundel.cli.options import PrivateOption


def push_command(
    folder: Annotated[str, typer.Argument(help="A folder that roundel quantize or roundel sweep wrote.")],
    repo: Annotated[
        str, typer.Argument(help="Repository of the hub: NAMESPACE/NAME, or a name of your own.")
    ],
    private: PrivateOption = False,
) -> None:
    """Upload an output folder to the hub: what roundel wrote in it, and nothing else."""
    address = roundel.push(folder, repo, private=private, progress=terminal_progress())
    out.print(f"Uploaded to {address}", soft_wrap=True)
