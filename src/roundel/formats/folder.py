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


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse early what could not be written at the end of a long run.

    Raises:
        OutputError: the target is a file, a non-empty folder without `overwrite`, or cannot be created.
    """
    if target.is_file():
        raise OutputError(f"{target} is a file: the name of a folder is wanted")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise OutputError(f"{target} exists and is not empty: choose another folder, or pass --overwrite")
    with reported(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        Path(tempfile.mkdtemp(dir=target.parent, prefix=_prefix(target))).rmdir()


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
