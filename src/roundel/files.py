"""Files that are there or not there, never half: written aside, flushed to the disk, then renamed."""

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from roundel.errors import OutputError


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
    part = path.with_name(f".{path.name}.part")
    with reported(path):
        write(part)
        flush(part)
        part.replace(path)
        flush(path.parent)


def json_text(content: Any, indent: int | None = None) -> str:
    """Plain data as JSON for a file in UTF-8, which does not take bytes of a name that are no text (lone surrogates)."""
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):x}", text) + "\n"


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows flushes names with the files
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
