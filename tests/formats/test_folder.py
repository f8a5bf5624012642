import errno
import gc
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import roundel
from roundel.engine import plan
from roundel.errors import OutputError
from roundel.formats.folder import atomic_folder, check_target


def entries(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name != ".work")


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """A work folder, in which nothing may be left."""
    folder = tmp_path / ".work"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


def test_a_folder_appears_complete(tmp_path: Path, work: Path) -> None:
    with atomic_folder(tmp_path / "deep" / "out", False, work) as building:
        (building / "a").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert entries(tmp_path / "deep") == ["out"]
    assert entries(tmp_path / "deep" / "out") == ["a"]
    assert os.stat(tmp_path / "deep" / "out").st_mode & 0o777 == 0o755


@pytest.mark.parametrize("failure", [ValueError("x"), KeyboardInterrupt(), RuntimeError()])
def test_nothing_is_left_after_a_failure(tmp_path: Path, work: Path, failure: BaseException) -> None:
    with pytest.raises(type(failure)), atomic_folder(tmp_path / "out", False, work) as building:
        (building / "a").write_text("1")
        raise failure
    assert entries(tmp_path) == []


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, work: Path) -> None:
    with (
        pytest.raises(OutputError, match="no space left"),
        atomic_folder(tmp_path / "out", False, work) as building,
    ):
        (building / "a").write_text("1")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert entries(tmp_path) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with room for 300 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    yield disk
    gc.collect()  # of mapped files
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("format", ["dense", "compressed-tensors"])
def test_a_disk_that_is_really_full(
    format: str, llama: Path, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = roundel.Recipe(method="rtn", group_size=32, format=format)
    with pytest.raises(OutputError, match=r"needs .* on the disk .* are free: make room"):
        roundel.quantize(llama, recipe, output=tiny_disk / "out")
    assert entries(tiny_disk) == []
    # Somebody else fills it after the plan was made.
    with monkeypatch.context() as patched:
        patched.setattr(plan.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**9}))
        with pytest.raises(OutputError, match="no space left"):
            roundel.quantize(llama, recipe, output=tiny_disk / "out")
    assert set(entries(tiny_disk)) <= {".out.roundel"}
    # With more room the same command goes on, and leaves nothing behind.
    subprocess.run(["mount", "-o", "remount,size=9m", str(tiny_disk)], check=True)
    roundel.quantize(llama, recipe, output=tiny_disk / "out")
    assert entries(tiny_disk) == ["out"]


def test_an_occupied_target_needs_overwrite(tmp_path: Path, work: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(OutputError, match="--overwrite"):
        check_target(tmp_path / "out", overwrite=False)
    with atomic_folder(tmp_path / "out", True, work) as building:
        (building / "new").write_text("new")
        assert entries(tmp_path / "out") == ["old"]
    assert entries(tmp_path / "out") == ["new"]
    assert entries(tmp_path) == ["out"]


def test_a_failed_overwrite_keeps_the_old_folder(tmp_path: Path, work: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(ValueError, match="x"), atomic_folder(tmp_path / "out", True, work):
        raise ValueError("x")
    assert entries(tmp_path / "out") == ["old"]
    assert entries(tmp_path) == ["out"]


def test_an_empty_target_is_welcome(tmp_path: Path, work: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out", False, work) as building:
        (building / "new").write_text("new")
    assert entries(tmp_path / "out") == ["new"]


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        check_target(tmp_path / "file", overwrite=True)
    with pytest.raises(OutputError, match="cannot be written"):
        check_target(tmp_path / "file" / "out", overwrite=False)
