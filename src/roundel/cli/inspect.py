"""`roundel inspect`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from roundel.cli.display import out
from roundel.engine.plan import size
from roundel.report.contents import FolderContents, read_contents
from roundel.report.records import LayerRecord


def inspect_command(
    folder: Annotated[Path, typer.Argument(help="A folder that `roundel quantize` wrote.")],
) -> None:
    """Show what is in an output folder: per layer bits, groups and size; what was left out and why."""
    contents = read_contents(folder)
    out.print(_layers(contents))
    manifest = contents.manifest
    out.print(
        f"{manifest['source']} quantized with {manifest['recipe']['name']}: "
        f"{manifest['bits_per_weight']:.3f} bits per quantized weight ({manifest['paper_bits']:.3f} as papers count), "
        f"{manifest['outlier_share']:.3%} outliers, "
        f"{contents.bits_per_parameter:.3f} bits per parameter of the whole folder, {size(contents.file_bytes)}",
        highlight=False,
        soft_wrap=True,
    )


def _layers(contents: FolderContents) -> Table:
    table = Table(title="Layers", title_justify="left")
    columns = ["layer", "shape", "bits", "group", "grid", "outliers", "bits/weight", "error", "size", ""]
    if any(layer.inputs for layer in contents.layers):
        columns.insert(-1, "inputs")
    for column in columns:
        left = column in ("layer", "grid", "inputs", "")
        table.add_column(column, justify="left" if left else "right", no_wrap=column == "layer")
    for layer in contents.layers:
        stored = size(contents.stored_bytes.get(layer.name, 0))
        shape = "x".join(map(str, layer.shape))
        inputs = [layer.inputs] if "inputs" in columns else []
        words = "; ".join(part for part in (layer.reason, layer.note, layer.smoothing) if part)
        table.add_row(layer.name, shape, *_grid_cells(layer), stored, *inputs, words)
    return table


def _grid_cells(layer: LayerRecord) -> list[str]:
    if layer.bits is None:
        return [""] * 6
    group = "channel" if layer.group_size == -1 else str(layer.group_size)
    grid = "sym" if layer.sym else "asym"
    assert layer.outliers is not None
    assert layer.bits_per_weight is not None
    assert layer.error is not None
    return [
        str(layer.bits),
        group,
        grid,
        f"{layer.outliers:.2%}",
        f"{layer.bits_per_weight:.3f}",
        f"{layer.error:.2e}",
    ]
