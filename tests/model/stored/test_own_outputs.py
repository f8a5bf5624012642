"""What Roundel wrote is an original where that is asked for."""

from pathlib import Path

import pytest
import torch

import roundel
from model.stored.forms import RTN, same
from model.test_extra_tensors import copy_with, stored
from roundel.errors import ModelError
from roundel.formats.reload import unpack_model
from roundel.workflows.open import open_model
from zoo import zoo_model

pytestmark = pytest.mark.slow("builds and dequantizes sources of every form")


@pytest.mark.parametrize("container", ["roundel", "dense", "compressed-tensors", "gptq", "awq"])
@pytest.mark.parametrize("name", ["llama", "deepseek_v3"])
def test_own_outputs_are_originals_when_asked_for(container: str, name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    roundel.quantize(
        zoo_model(name), roundel.Recipe.create(**RTN, format=container), output=out, held_out=None
    )
    coarser = roundel.Recipe.create(**{**RTN, "bits": 3}, format="roundel")
    with pytest.raises(ModelError, match="by Roundel.*--allow-quantized"):
        roundel.quantize(out, coarser)
    with pytest.raises(ModelError, match="--allow-quantized"):
        roundel.plan(out, coarser)
    loaded, _ = roundel.load(out, packed=False)
    unpack_model(loaded)
    ours = open_model(out, None, False, False, allow_own=True)
    same(ours.model.state_dict(), {name: loaded.state_dict()[name] for name in ours.model.state_dict()})
    found = roundel.quantize(out, coarser, allow_quantized=True)
    assert "no full-precision model" in found.manifest["original"]["read_from"]
    again = tmp_path / "again"
    done = roundel.quantize(out, coarser, allow_quantized=True, output=again, stream=True, held_out=None)
    assert done.manifest["original"] == found.manifest["original"]
    written = roundel.read_integers(again)
    assert written.keys() == found.weights.keys()
    for layer, weight in found.weights.items():
        assert torch.equal(written[layer].codes, weight.codes), layer
    assert len(roundel.inspect(out, coarser, allow_quantized=True)) == len(done.manifest["layers"])


def test_tensors_without_a_place_go_on_from_our_own_container(tmp_path: Path) -> None:
    more = {"mtp.fc.weight": torch.randn(96, 192)}
    source = copy_with(zoo_model("llama"), tmp_path / "source", more)
    recipe = roundel.Recipe.create(**RTN, format="roundel")
    roundel.quantize(source, recipe, output=tmp_path / "one", held_out=None)
    roundel.quantize(tmp_path / "one", recipe, output=tmp_path / "two", held_out=None, allow_quantized=True)
    assert torch.equal(stored(tmp_path / "two")["mtp.fc.weight"], more["mtp.fc.weight"])
