import errno
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounts import mounted

import roundel
from roundel.engine import count_bytes
from roundel.errors import OutputError
from roundel.formats.folder import atomic_folder, check_target, settle
from roundel.records.manifest import write_manifest


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
    with mounted(tmp_path, "size=300k", "--lazy") as disk:
        yield disk
        gc.collect()  # of mapped files


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
        patched.setattr(count_bytes.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**9}))
        with pytest.raises(OutputError, match="no space left"):
            roundel.quantize(llama, recipe, output=tiny_disk / "out")
    assert set(entries(tiny_disk)) <= {".out.roundel"}
    # With more room the same command goes on, and leaves nothing behind.
    subprocess.run(["mount", "-o", "remount,size=9m", str(tiny_disk)], check=True)
    roundel.quantize(llama, recipe, output=tiny_disk / "out")
    assert entries(tiny_disk) == ["out"]


def fill(folder: Path, name: str = "old") -> None:
    """As Roundel leaves an output folder."""
    (folder / "below").mkdir(parents=True)
    (folder / name).write_text(name)
    (folder / "below" / name).write_text(name)
    write_manifest(folder, {})


def test_an_occupied_target_needs_overwrite(tmp_path: Path, work: Path) -> None:
    fill(tmp_path / "out")
    with pytest.raises(OutputError, match="--overwrite"):
        check_target(tmp_path / "out", overwrite=False)
    with atomic_folder(tmp_path / "out", True, work) as building:
        (building / "new").write_text("new")
        assert entries(tmp_path / "out") == ["below", "old", "roundel.json"]
    assert entries(tmp_path / "out") == ["new"]
    assert entries(tmp_path) == ["out"]


def test_a_failed_overwrite_keeps_the_old_folder(tmp_path: Path, work: Path) -> None:
    fill(tmp_path / "out")
    with pytest.raises(ValueError, match="x"), atomic_folder(tmp_path / "out", True, work):
        raise ValueError("x")
    assert entries(tmp_path / "out") == ["below", "old", "roundel.json"]
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


def test_a_file_that_comes_during_the_work_keeps_the_old_folder(tmp_path: Path, work: Path) -> None:
    fill(tmp_path / "out")
    with (
        pytest.raises(OutputError, match=r"out holds thesis\.tex, which roundel did not write"),
        atomic_folder(tmp_path / "out", True, work),
    ):
        (tmp_path / "out" / "thesis.tex").write_text("years")
    assert entries(tmp_path / "out") == ["below", "old", "roundel.json", "thesis.tex"]
    assert entries(tmp_path) == ["out"]


# What changes a disk; Python tells of each before it happens.
STEPS = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")


def overwriting(tmp_path: Path, at: int, befall: Callable[[], None]) -> bool:
    """Replace `out` in another process, to which something happens before one step; whether there was that step."""
    child = os.fork()
    if child == 0:
        counted = 0
        alive = True

        def hook(event: str, arguments: tuple) -> None:
            nonlocal counted
            if alive and event in STEPS:
                counted += 1
                if counted == at:
                    befall()

        sys.addaudithook(hook)
        code = 0
        try:
            with atomic_folder(tmp_path / "out", True, tmp_path / ".work") as building:
                fill(building, "new")
        except OutputError:
            code = 3
        except BaseException:
            code = 5
        alive = False
        os._exit(code if counted >= at else 4)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code != 5
    return code != 4


def whole(folder: Path) -> str:
    """`old` or `new`, if a folder is complete."""
    for name in ("old", "new"):
        found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
        if found == sorted(["below", f"below/{name}", name, "roundel.json"]):
            return name
    return ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are copied the POSIX way")
def test_killed_before_any_step_the_old_folder_or_the_new_one_is_there(tmp_path: Path) -> None:
    seen = set()
    for at in range(1, 1000):
        place = tmp_path / str(at)
        (place / ".work").mkdir(parents=True)
        fill(place / "out")
        if not overwriting(place, at, lambda: os._exit(9)):
            break
        settle(place / "out", place / ".work")
        seen.add(whole(place / "out"))
        # And the next run does what this one wanted.
        with atomic_folder(place / "out", True, place / ".work") as building:
            fill(building, "new")
        assert whole(place / "out") == "new"
        # An empty folder, made to see whether one can be made, may be left.
        assert [name for name in entries(place) if "unfinished" not in name] == ["out"]
        assert list((place / ".work").iterdir()) == []
    assert at > 20
    assert seen == {"old", "new"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are copied the POSIX way")
def test_a_file_that_comes_before_any_step_is_never_lost(tmp_path: Path) -> None:
    came = 0
    for at in range(1, 1000):
        place = tmp_path / str(at)
        (place / ".work").mkdir(parents=True)
        fill(place / "out")
        # Somebody works in the folder: wherever it is moved to, that is where the file comes.
        handle = os.open(place / "out" / "below", os.O_RDONLY)

        def write(handle: int = handle) -> None:
            try:
                file = os.open("thesis.tex", os.O_WRONLY | os.O_CREAT, dir_fd=handle)
            except FileNotFoundError:  # the folder is gone already
                return
            os.write(file, b"years")
            os.close(file)

        there = overwriting(place, at, write)
        os.close(handle)
        if not there:
            break
        found = list(place.rglob("thesis.tex"))
        assert [path.read_text() for path in found] in ([], ["years"])
        came += len(found)
        if not found:
            assert whole(place / "out") == "new"
        # The next run gets by without losing it, too.
        settle(place / "out", place / ".work")
        assert len(list(place.rglob("thesis.tex"))) == len(found)
    assert came > 10
