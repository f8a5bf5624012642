"""Output folders appear complete or not at all.

The folder is built under a hidden name beside the target and renamed at the end; whatever ends the run before
that (an error, Ctrl-C, a full disk) removes it. Only a kill leaves it behind, under a name that says so.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from roundel.errors import OutputError


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse early what could not be written at the end of a long run.

    Raises:
        OutputError: the target is a file, a non-empty folder without `overwrite`, or cannot be created.
    """
    if target.is_file():
        raise OutputError(f"{target} is a file: the name of a folder is wanted")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise OutputError(f"{target} exists and is not empty: choose another folder, or pass --overwrite")
    with _reported(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        Path(tempfile.mkdtemp(dir=target.parent, prefix=_prefix(target))).rmdir()


@contextmanager
def atomic_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the body ends without an exception.

    Raises:
        OutputError: disk full, no permission, target occupied.
    """
    check_target(target, overwrite)
    with _reported(target):
        building = Path(tempfile.mkdtemp(dir=target.parent, prefix=_prefix(target)))
        try:
            yield building
            building.chmod(0o755)
            _move_into_place(building, target)
        finally:
            shutil.rmtree(building, ignore_errors=True)


def _move_into_place(building: Path, target: Path) -> None:
    if not target.exists():
        building.rename(target)
        return
    # The old folder is moved aside first, and moved back should the new one not take its place.
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=_prefix(target)))
    target.rename(aside / "old")
    try:
        building.rename(target)
    except OSError:
        (aside / "old").rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _prefix(target: Path) -> str:
    return f".{target.name}.unfinished-"


@contextmanager
def _reported(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors wraps the system's error and keeps its words only.
        if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            raise OutputError(f"no space left on the disk of {target}: nothing was written") from error
        raise OutputError(f"{target} cannot be written: {error}") from error
