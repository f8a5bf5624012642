"""Models in memory are known again: one object is not two models, and what was quantized is no original."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.utils.prune
from transformers import (
    AutoModelForCausalLM,
)

import roundel
from roundel.errors import ModelError
from workflows.callers import ARCHITECTURES, logits, opened, reader, recipe, with_lora
from zoo import zoo_model

pytestmark = pytest.mark.slow("quantizes four architectures, again and again")


def test_a_model_is_not_measured_against_itself(held_out: Path) -> None:
    model = opened()
    result = roundel.quantize(model, recipe())
    where = {"tokenizer": reader(), "text": str(held_out), "window": 32, "limit": 1}
    with pytest.raises(ModelError, match="are one object.*open the original anew"):
        roundel.evaluate(result.model, reference=model, **where)
    with pytest.raises(ModelError, match="are one object"):
        roundel.compare([zoo_model("llama"), result.model], model, **where)
    with pytest.raises(ModelError, match="are one object"):
        roundel.compare([model, result.model], zoo_model("llama"), **where)
    with pytest.raises(ModelError, match="are one object"):
        roundel.evaluate(torch.compile(model), reference=model, **where)


def test_nor_against_one_that_shares_its_weights(held_out: Path) -> None:
    model, other = opened(), opened()
    other.model.layers[1].mlp.up_proj.weight = model.model.layers[1].mlp.up_proj.weight
    where = {"tokenizer": reader(), "text": str(held_out), "window": 32, "limit": 1}
    with pytest.raises(ModelError, match=r"share weights \(model.layers.1.mlp.up_proj.weight\)"):
        roundel.evaluate(other, reference=model, **where)
    with pytest.raises(ModelError, match="share weights"):
        roundel.compare([other], model, **where)
    shallow = copy.copy(model)
    with pytest.raises(ModelError, match="share weights"):
        roundel.evaluate(shallow, reference=model, **where)
    base = opened()
    with pytest.raises(ModelError, match="share weights"):
        roundel.evaluate(with_lora(base), reference=base, **where)


def test_two_models_are_compared(held_out: Path) -> None:
    result = roundel.quantize(opened(), recipe())
    found = roundel.evaluate(
        result.model, reference=opened(), tokenizer=reader(), text=str(held_out), window=32, limit=2
    )
    assert found.texts[0].kl.mean.value > 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_quantizing_twice_is_refused_as_of_folders(name: str, tmp_path: Path) -> None:
    model = opened(name)
    roundel.quantize(model, recipe(), output=tmp_path / "out", tokenizer=reader(name), held_out=None)
    refused = "is quantized already, by Roundel: the original model is expected.*allow_quantized=True"
    half, copied = copy.deepcopy(model).bfloat16(), copy.deepcopy(model)
    for given in (model, copied, half, copy.deepcopy(half).float(), torch.compile(copied)):
        for call in (roundel.quantize, roundel.inspect, roundel.plan):
            with pytest.raises(ModelError, match=refused):
                call(given, recipe(bits=8))
    with pytest.raises(ModelError, match=refused):
        roundel.quantize(tmp_path / "out", recipe(bits=8))
    again = roundel.quantize(model, recipe(bits=8), allow_quantized=True)
    read_from = again.manifest["original"]["read_from"]
    assert "model in memory that Roundel had quantized (rtn" in read_from
    assert "bits per weight" in read_from
    roundel.inspect(copied, recipe(bits=8), allow_quantized=True)


@pytest.mark.parametrize("format", ["dense", "compressed-tensors", "roundel"])
def test_so_is_what_was_loaded(format: str, tmp_path: Path) -> None:
    for name in ("llama", "mixtral"):
        out = tmp_path / name
        result = roundel.quantize(zoo_model(name), recipe(format=format), output=out, held_out=None)
        for model in (result.model, roundel.load(out, packed=False)[0]):
            with pytest.raises(ModelError, match="is quantized already"):
                roundel.quantize(model, recipe(bits=8))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_fresh_weights_are_a_fresh_model(name: str, tmp_path: Path) -> None:
    model = opened(name)
    weights = copy.deepcopy(model.state_dict())
    wanted = roundel.quantize(copy.deepcopy(model), recipe()).model
    roundel.quantize(model, recipe(bits=2))
    model.load_state_dict(weights)
    found = roundel.quantize(model, recipe())
    assert "read_from" not in found.manifest["original"]
    assert torch.equal(logits(found.model), logits(wanted))
    roundel.quantize(opened(name), recipe())  # of the same folder, beside a marked one


def test_the_mark_is_not_written(llama: Path, tmp_path: Path) -> None:
    model = opened()
    config = model.config.to_dict()
    roundel.quantize(model, recipe())
    assert model.config.to_dict() == config
    model.save_pretrained(tmp_path / "saved")
    assert "roundel" not in (tmp_path / "saved" / "config.json").read_text(encoding="utf-8")
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert not hasattr(reopened, "roundel_mark")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reopened.parameters(), strict=True))
