"""What must work although it looks odd: blanks, other alphabets, links, double precision, other languages, clocks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bad_inputs.box import SHARD, WEIGHTS, Box
from bad_inputs.commands import quantize
from bad_inputs.run import run
from zoo import zoo_model

pytestmark = [pytest.mark.reports, pytest.mark.slow("quantizes under every name, and starts processes")]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The weights that an ordinary run writes."""
    out = tmp_path_factory.mktemp("straight") / "out"
    code, err, _ = run(*quantize(zoo_model("llama"), "-o", out))
    assert code == 0, err
    return written(out)


def written(out: Path) -> dict[str, bytes]:
    """All files but the manifest, the report and the card, which tell of the run."""
    timed = ("roundel.json", "report.json", "report.html", "README.md")
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name not in timed}


def works(model: Path | str, out: Path | str) -> None:
    code, err, _ = run(*quantize(model, "-o", out))
    assert code == 0, err


@pytest.mark.parametrize(
    "name", ["with blanks", "modèle", "模型", "a'b\"c", "50% & more; #1", "-dash", "dots.v1.0"]
)
def test_names_of_all_kinds(name: str, straight: dict[str, bytes], tmp_path: Path) -> None:
    shutil.copytree(zoo_model("llama"), tmp_path / name)
    works(tmp_path / name, tmp_path / f"{name} out")
    assert written(tmp_path / f"{name} out") == straight
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, f"{name} out"])


def test_relative_paths_and_slashes(straight: dict[str, bytes], tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(zoo_model("llama"), tmp_path / "model")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    works("../model/", "deep/er/out/")
    assert written(tmp_path / "here" / "deep" / "er" / "out") == straight


def test_the_home_folder(straight: dict[str, bytes], tmp_path: Path, monkeypatch) -> None:
    shutil.copytree(zoo_model("llama"), tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    works("~/model", "~/out")
    assert written(tmp_path / "out") == straight


def test_links(straight: dict[str, bytes], tmp_path: Path) -> None:
    """To the model, to its weights as in the hub's cache, and to the folder of the output."""
    store = tmp_path / "store"
    shutil.copytree(zoo_model("llama"), store / "model")
    (store / "model" / WEIGHTS).rename(store / "blob")
    (store / "model" / WEIGHTS).symlink_to("../blob")
    (store / "outputs").mkdir()
    (tmp_path / "model").symlink_to(store / "model")
    (tmp_path / "outputs").symlink_to(store / "outputs")
    works(tmp_path / "model", tmp_path / "outputs" / "out")
    assert written(store / "outputs" / "out") == straight


def test_a_checkpoint_in_linked_shards(straight: dict[str, bytes], tmp_path: Path) -> None:
    model = Box(tmp_path).index()
    (model / SHARD.format(2)).rename(tmp_path / "blob")
    (model / SHARD.format(2)).symlink_to("../blob")
    works(model, tmp_path / "out")
    assert written(tmp_path / "out") == straight


def test_double_precision_gives_the_same_integers(straight: dict[str, bytes], tmp_path: Path) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.double() for name, tensor in tensors.items()})

    model = Box(tmp_path).tensors(widen, dtype="float64")
    works(model, tmp_path / "out")
    (tmp_path / "straight.safetensors").write_bytes(straight[WEIGHTS])
    wanted, found = load_file(tmp_path / "straight.safetensors"), load_file(tmp_path / "out" / WEIGHTS)
    assert all(torch.equal(found[name], codes) for name, codes in wanted.items() if name.endswith("_packed"))
    assert found["model.norm.weight"].dtype == torch.float64


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "TZ": "Pacific/Kiritimati"},
        {"LC_ALL": "C", "TZ": "America/St_Johns"},
        {"PYTHONIOENCODING": "ascii"},
    ],
    ids=["Turkish", "C", "ASCII"],
)
def test_other_languages_and_clocks(
    environment: dict[str, str], straight: dict[str, bytes], tmp_path: Path
) -> None:
    model = shutil.copytree(zoo_model("llama"), tmp_path / "modèle")
    command = [sys.executable, "-m", "roundel", *quantize(model, "-o", tmp_path / "sortie é")]
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert written(tmp_path / "sortie é") == straight
