"""Pickled checkpoints, with --allow-pickle, in every command that opens a model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import roundel
from roundel.errors import ModelError


@pytest.fixture(scope="module")
def pickled(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(llama, tmp_path_factory.mktemp("pickled") / "model"))
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    return folder


def test_planned_as_its_safetensors_are(pickled: Path, llama: Path, tmp_path: Path) -> None:
    recipe = roundel.Recipe(method="rtn", group_size=32)
    of_pickle, _ = roundel.plan(pickled, recipe, output=tmp_path / "out", trial=False, allow_pickle=True)
    of_safe, _ = roundel.plan(llama, recipe, output=tmp_path / "out", trial=False)
    assert (of_pickle.output, of_pickle.disk) == (of_safe.output, of_safe.disk)
    with pytest.raises(ModelError, match="pass --allow-pickle"):
        roundel.plan(pickled, recipe, output=tmp_path / "out", trial=False)


def test_measured_and_compared(pickled: Path, llama: Path, held_out: Path) -> None:
    how = {"text": str(held_out), "window": 32, "limit": 2, "allow_pickle": True}
    found = roundel.evaluate(pickled, reference=llama, **how)
    assert found.texts[0].kl.mean.value == 0
    compared = roundel.compare([llama], pickled, **how)
    assert json.loads(json.dumps(compared))["models"][0]["quality"]["texts"][0]["kl"]["mean"]["value"] == 0
    with pytest.raises(ModelError, match="pass --allow-pickle"):
        roundel.evaluate(pickled, **{**how, "allow_pickle": False})
