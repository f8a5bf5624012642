"""`roundel report`."""

from typing import Annotated

import typer

import roundel
from roundel.cli.display import out


def report_command(
    folder: Annotated[str, typer.Argument(help="A folder that roundel quantize wrote.")],
) -> None:
    """Make the page and the card of an output folder anew from its report.json."""
    out.print(f"The page: {roundel.render_report(folder)}", soft_wrap=True)
