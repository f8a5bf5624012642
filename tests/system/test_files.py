"""Whoever may read what Roundel writes is said by the umask."""

import os
import stat
from pathlib import Path

import pytest
import torch

import processes
import roundel
from processes import Started
from roundel.system.files import set_modes, write_durably

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="modes are POSIX"),
    pytest.mark.slow("runs every command under several umasks"),
]


def write_everything(umask: int, model: Path, text: Path, out: Path) -> None:
    os.umask(umask)
    for format in ("roundel", "dense", "compressed-tensors"):
        recipe = roundel.Recipe(method="rtn", group_size=32, format=format)
        held_out = str(text) if format == "roundel" else None
        roundel.quantize(model, recipe, output=out / format, stream=format == "dense", held_out=held_out)
    roundel.evaluate(
        model, reference=model, text=str(text), window=32, limit=2, cache=out / "cache",
        per_token=out / "tokens.parquet",
    )  # fmt: skip
    processes.command(
        "compare", out / "dense", "--reference", model, "--text", text, "--window", "32", "--limit", "2",
        "--page", out / "page.html", "--json", out / "figures.json",
    )  # fmt: skip


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_everything_follows_the_umask(umask: int, llama: Path, held_out: Path, tmp_path: Path) -> None:
    out = tmp_path / "all"
    out.mkdir()
    run = Started(tmp_path / "said", write_everything, umask, llama, held_out, out, reports=True)
    assert run.wait() == 0, run.stderr
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in out.rglob("*")}
    assert len([path for path in found if path.name.endswith(".safetensors")]) > 4
    assert {path.name for path in out.iterdir()} >= {
        "cache",
        "dense",
        "figures.json",
        "page.html",
        "tokens.parquet",
    }
    for path, mode in found.items():
        assert mode == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_what_a_writer_leaves_is_made_right(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {"a": torch.zeros(3)}
    before = os.umask(0o037)
    try:
        write_durably(tmp_path / "one", lambda part: save_file(tensors, part))
        (tmp_path / "folder" / "below").mkdir(parents=True)
        (tmp_path / "folder" / "below").chmod(0o700)
        save_file(tensors, tmp_path / "folder" / "below" / "two")
        (tmp_path / "folder" / "three").touch(0o755)
        set_modes(tmp_path / "folder")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"one": 0o640, "folder": 0o740, "below": 0o740, "two": 0o640, "three": 0o640}


def test_a_file_beside_it_is_left_alone(tmp_path: Path) -> None:
    """A former name of the file that is written aside; it may be somebody's."""
    (tmp_path / ".one.part").write_text("mine")
    write_durably(tmp_path / "one", lambda part: part.write_text("ours"))
    with pytest.raises(ValueError, match="x"):
        write_durably(tmp_path / "two", lambda part: (part.write_text("half"), int("x")))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        ".one.part": "mine",
        "one": "ours",
    }
