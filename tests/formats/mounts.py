"""File systems of their own, where mounting them is permitted."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, option: str, *how_to_leave: str) -> Iterator[Path]:
    """A file system in memory, mounted with an option in a folder of its own."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip(f"mounting a file system ({option}) is not permitted here")
    yield disk
    subprocess.run(["umount", *how_to_leave, str(disk)], check=True)
