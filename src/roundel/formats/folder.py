"""Output folders appear complete or not at all.

The folder is built in a work folder beside the target and renamed at the end; whatever ends the run before that (an
error, Ctrl-C, a full disk) removes it, and after a kill the next run does.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from roundel.errors import OutputError
from roundel.files import flush, reported


def check_target(target: Path, overwrite: bool, source: Path | None = None) -> None:
    """Refuse early what could not be written at the end of a long run, or would destroy the model that is read.

    Args:
        target: the output folder.
        overwrite: it may be replaced.
        source: the folder or file of the model, where it is one.

    Raises:
        OutputError: the target is no name for a new folder, a file, a link, a non-empty folder without `overwrite`,
            in the way of the source, or cannot be created.
    """
    if target.name in ("", ".."):
        raise OutputError(f"the output {target} has no name of its own: the name of a new folder is wanted")
    if target.is_symlink():
        raise OutputError(
            f"{target} is a link to {target.readlink()}: the folder itself is wanted, replacing the link would leave "
            "the other as it is"
        )
    if target.is_file():
        raise OutputError(f"{target} is a file: the name of a folder is wanted")
    if source is not None:
        _refuse_in_the_way(target, source)
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise OutputError(f"{target} exists and is not empty: choose another folder, or pass --overwrite")
    for parent in target.parents:
        if parent.exists() and not parent.is_dir():
            raise OutputError(f"{target} cannot be written: {parent} is a file; choose another folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        Path(tempfile.mkdtemp(dir=target.parent, prefix=_prefix(target))).rmdir()
    except OSError as error:
        found = error.strerror or error
        raise OutputError(f"{target} cannot be written ({found}): choose another folder") from error


def _refuse_in_the_way(target: Path, source: Path) -> None:
    """The source is read until the end: it must neither be replaced nor grow."""
    if not source.exists():
        return  # a hub id
    output, model = target.resolve(), source.resolve()
    if output == model or output in model.parents:
        raise OutputError(f"{target} holds the model {source}, which it would replace: choose another folder")
    if model in output.parents:
        raise OutputError(f"{target} is inside the model {source}: choose a folder outside of it")


@contextmanager
def atomic_folder(target: Path, overwrite: bool, work: Path) -> Iterator[Path]:
    """A folder inside `work` that becomes `target` when the body ends without an exception.

    `work` exists, on the file system of the target, and nobody else uses it.

    Raises:
        OutputError: disk full, no permission, target occupied.
    """
    check_target(target, overwrite)
    building, aside = work / "building", work / "replaced"
    with reported(target):
        for left in (building, aside):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        building.mkdir(mode=0o755)
        try:
            yield building
            for file in building.rglob("*"):
                flush(file)
            _move_into_place(building, target, aside)
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _move_into_place(building: Path, target: Path, aside: Path) -> None:
    if not target.exists():
        building.rename(target)
    else:
        # The old folder is moved aside first, and moved back should the new one not take its place.
        target.rename(aside)
        try:
            building.rename(target)
        except OSError:
            aside.rename(target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    flush(target.parent)


def _prefix(target: Path) -> str:
    return f".{target.name}.unfinished-"
