"""What a Python user does with a folder that Roundel wrote: export it, push it, render its report, read integers."""

from pathlib import Path
from typing import Any

from roundel.grid.quantized_weight import QuantizedWeight
from roundel.recipe import FormatName
from roundel.system.progress import Progress
from roundel.system.surroundings import undisturbed
from roundel.workflows.export import ExportOptions, export_folder
from roundel.workflows.open import read_integers_of
from roundel.workflows.push import push_existing
from roundel.workflows.report import render_again


@undisturbed
def export(
    folder: str | Path,
    format: FormatName,
    output: str | Path,
    *,
    like: str | Path | None = None,
    overwrite: bool = False,
    blocks: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a folder that `quantize` wrote in another format, with the same weights to the last bit.

    Nothing is rounded again: what the other format does not hold is refused, and the message says which setting the
    original would have to be quantized with (docs/export.md).

    Args:
        folder: that `quantize`, `sweep` or `export` wrote; it stays as it is.
        format: of the new folder.
        output: folder to write.
        like: a GGUF file that llama.cpp's converter made of the same model: a GGUF output gets its metadata and names.
        overwrite: replace an output folder that Roundel wrote; another one, or one with other files in it, is refused.
        blocks: pattern of the decoder blocks' full names, where they are not found by themselves.
        trust_remote_code: run modeling code that comes with the model.
        progress: gets every message and step; None is silent.

    Returns:
        The manifest of the new folder.

    Raises:
        RoundelError: bad input, or a failed check; nothing is written then.
    """
    options = ExportOptions(
        like=None if like is None else Path(like).expanduser(),
        overwrite=overwrite,
        blocks=blocks,
        trust_remote_code=trust_remote_code,
        progress=progress or Progress(),
    )
    return export_folder(Path(folder).expanduser(), format, Path(output).expanduser(), options)


@undisturbed
def push(folder: str | Path, repo: str, *, private: bool = False, progress: Progress | None = None) -> str:
    """Upload a folder that `quantize` wrote to the hub, with the token that huggingface_hub finds.

    What goes up are the files that its manifest lists, its report and its card, and nothing else. What Roundel uploaded
    there before and this folder does not have is removed there; everything else in the repository stays.

    Args:
        folder: that `quantize` or `sweep` wrote.
        repo: `namespace/name`, or a name in the token's own namespace; made where there is none.
        private: the repository is private, where it is made.
        progress: gets every message; None is silent.

    Returns:
        The address of its page on the hub.

    Raises:
        RoundelError: the folder is not whole, or the hub does not take it.
    """
    return push_existing(Path(folder).expanduser(), repo, private=private, progress=progress or Progress())


@undisturbed
def render_report(folder: str | Path) -> Path:
    """Make `report.html` and the card of an output folder anew from its `report.json`; the path of the page.

    Raises:
        RoundelError: the folder has no readable report, or the libraries that a page needs are not installed.
    """
    return render_again(Path(folder).expanduser())


@undisturbed
def read_integers(folder: str | Path) -> dict[str, QuantizedWeight]:
    """The integers of every quantized Linear, by full name, from a folder or hub id in the format `roundel` or `dense`.

    Raises:
        ModelError: the folder holds none, or they are damaged.
    """
    return read_integers_of(folder)
