"""Files that are there or not there, never half: written aside, flushed to the disk, then renamed.

Who may read what this process makes is decided by its umask. Some writers do not ask (safetensors makes files that the
owner alone can read), so modes are set by those that the system gives a new file.
"""

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

from safetensors import SafetensorError

from roundel.errors import OutputError


def unfit_name(path: Path) -> str:
    """Why there can be no weight files at a path; empty where there can be."""
    if "\0" in str(path):
        return "its name holds a NUL character"
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return "its name is no text in UTF-8, which safetensors wants of a path"
    return ""


@contextmanager
def reported(target: Path) -> Iterator[None]:
    """Turn what the system says about a path into an OutputError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors wraps the system's error and keeps its words only.
        if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            raise OutputError(f"no space left on the disk of {target}: nothing was written") from error
        raise OutputError(f"{target} cannot be written: {error}") from error


def write_durably(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, and give it its name once it is on the disk.

    Raises:
        OutputError: disk full, no permission.
    """
    # A name that is not taken: what lies beside the file may be the user's.
    part = path.with_name(f".{path.name}.{token_hex(4)}.part")
    with reported(path):
        try:
            mode = _make(part)
            write(part)
            _set_mode(part, mode)
            flush(part)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        flush(path.parent)


def json_text(content: Any, indent: int | None = None) -> str:
    """Plain data as JSON for a file in UTF-8, which takes no bytes of a name that are no text (lone surrogates)."""
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):x}", text) + "\n"


def set_modes(folder: Path) -> None:
    """Give everything below a folder the mode that the system gives a new file, or folder, in it."""
    probe = folder / f".{token_hex(8)}"
    mode = _make(probe)
    probe.unlink()
    below = stat.S_IMODE(folder.stat().st_mode)
    for path in folder.rglob("*"):
        _set_mode(path, below if path.is_dir() else mode)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows flushes names with the files
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make(path: Path) -> int:
    """Make an empty file of a new name; the mode that it got."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


def _set_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)
