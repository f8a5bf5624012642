"""Output folders appear complete or not at all, and take no other work with them.

The folder is built in a work folder beside the target and renamed at the end; whatever ends the run before that (an
error, Ctrl-C, a full disk) removes it, and after a kill the next run does. A folder that is replaced is moved aside,
looked at once more, and goes only when the new one has its name; of it goes only what Roundel wrote (belongings.py):

    building/     the new folder
    replaced/     the old one, while neither has the name: it gets it back should the new one not come
    discarded/    the old one, when the new one has the name
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from roundel.errors import OutputError
from roundel.system.belongings import remove, take_stock
from roundel.system.files import flush, reported, set_modes, unfit_name

_BUILDING, _REPLACED, _DISCARDED = "building", "replaced", "discarded"


def check_target(target: Path, overwrite: bool, source: Path | None = None, *, vacant: bool = True) -> None:
    """Refuse early what could not be written at the end of a long run, or would destroy other work.

    Args:
        target: the output folder.
        overwrite: it may be replaced, if Roundel wrote it.
        source: the folder or file of the model, where it is one.
        vacant: nothing is left there that must stay.

    Raises:
        OutputError: the target is no name for a new folder, a file, a link, a non-empty folder without `overwrite`, a
            folder with something in it that Roundel did not write, in the way of the source, or cannot be created.
    """
    unfit = unfit_name(target)
    if unfit:
        raise OutputError(f"{target} cannot be written ({unfit}): choose another name")
    if target.name in ("", ".."):
        raise OutputError(f"the output {target} has no name of its own: the name of a new folder is expected")
    if target.is_symlink():
        raise OutputError(
            f"{target} is a link to {target.readlink()}: the folder itself is expected, replacing the link would leave "
            "the other as it is"
        )
    if target.is_file():
        raise OutputError(f"{target} is a file: the name of a folder is expected")
    if source is not None:
        _refuse_in_the_way(target, source)
    if vacant:
        _check_vacant(target, overwrite)
    for parent in target.parents:
        if parent.exists() and not parent.is_dir():
            raise OutputError(f"{target} cannot be written: {parent} is a file; choose another folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        Path(tempfile.mkdtemp(dir=target.parent, prefix=_prefix(target))).rmdir()
    except OSError as error:
        found = error.strerror or error
        raise OutputError(f"{target} cannot be written ({found}): choose another folder") from error


def _check_vacant(target: Path, overwrite: bool) -> None:
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise OutputError(f"{target} exists and is not empty: choose another folder, or pass --overwrite")
    take_stock(target)


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
def atomic_folder(
    target: Path, overwrite: bool, work: Path, say: Callable[[str], None] = lambda text: None
) -> Iterator[Path]:
    """A folder inside `work` that becomes `target` when the body ends without an exception.

    Args:
        target: which may be replaced, if `overwrite` and Roundel wrote it.
        overwrite: see there.
        work: exists, on the file system of the target, and nothing else uses it.
        say: gets what was found in the old folder at the last moment.

    Raises:
        OutputError: disk full, no permission, target occupied.
    """
    said = settle(target, work)
    if said:
        say(said)
    check_target(target, overwrite)
    building = work / _BUILDING
    with reported(target):
        shutil.rmtree(building, ignore_errors=True)  # by a run that was killed
        building.mkdir()
        try:
            yield building
            set_modes(building)
            for file in building.rglob("*"):
                flush(file)
            _move_into_place(building, target, work, overwrite)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        said = settle(target, work)
        if said:
            say(said)


def _move_into_place(building: Path, target: Path, work: Path, overwrite: bool) -> None:
    """Give the new folder its name; nothing is deleted here."""
    aside = work / _REPLACED
    try:
        if target.exists():
            target.rename(aside)
            _check_vacant(aside, overwrite)  # a file may have come since
        building.rename(target)  # fails where something has come there
    except OutputError as error:
        raise OutputError(str(error).replace(str(aside), str(target))) from error
    finally:
        if building.exists() and aside.exists():
            if target.exists():
                _keep(aside, target)
            else:
                aside.rename(target)
    if aside.exists():
        aside.rename(work / _DISCARDED)
    flush(target.parent)


def unsettled(work: Path) -> bool:
    """Whether an old folder is still in the work folder."""
    return (work / _REPLACED).exists() or (work / _DISCARDED).exists()


def settle(target: Path, work: Path) -> str:
    """See to old folders in a work folder: an ended run of this process, or of one that was killed, left them there.

    Returns:
        What was kept of them, and where; mostly empty.
    """
    replaced, discarded = work / _REPLACED, work / _DISCARDED
    if replaced.exists():
        if not target.exists():
            replaced.rename(target)
        elif (work / _BUILDING).exists():  # another folder has the name now
            return _keep(replaced, target)
        elif not discarded.exists():
            replaced.rename(discarded)
    return _clear_away(discarded, target)


def _clear_away(folder: Path, target: Path) -> str:
    """Remove an old folder; a file that has come into it is kept, with what is left around it."""
    if not folder.exists():
        return ""
    try:
        gone = remove(take_stock(folder))
    except OutputError:
        gone = False
    return "" if gone else _keep(folder, target)


def _keep(folder: Path, target: Path) -> str:
    number = 1
    while (kept := target.with_name(f"{target.name}.kept-{number}")).exists():
        number += 1
    folder.rename(kept)
    return f"The former {target} is kept as {kept}: something came into it that roundel did not write"


def _prefix(target: Path) -> str:
    return f".{target.name}.unfinished-"
