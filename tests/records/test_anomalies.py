"""A layer whose scales were doubled is named; no layer of a sound model is."""

from dataclasses import replace
from math import inf, nan
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import roundel
from roundel.records.anomalies import standouts
from roundel.records.outcome import LayerRecord
from zoo import zoo_model

pytestmark = pytest.mark.slow("quantizes models with a broken layer")

DATA = {"nsamples": 16, "seqlen": 64, "batch_size": 8}
METHODS = {
    "rtn": {"method": "rtn", "group_size": 32},
    "rows": {"method": "rtn", "group_size": -1},
    "gptq": {"method": "gptq", "group_size": 32, **DATA},
    "spqr": {"method": "spqr", "group_size": 16, "outliers": 0.01, **DATA},
    "autoround": {"group_size": 32, "iters": 20, **DATA},
}


def quantized(folder: Path, method: str, bits: int) -> tuple[list[dict], dict[str, float]]:
    """Layers as the manifest tells of them, and the error of each if its scales were doubled."""
    recipe = roundel.Recipe(bits=bits, **METHODS[method])
    done = roundel.quantize(folder, recipe, calibration="pydoc" if recipe.needs_calibration else None)
    original, doubled = AutoModelForCausalLM.from_pretrained(folder), {}
    for name, weight in done.weights.items():
        module = original.get_submodule(name)
        wanted = module.weight.detach()
        wanted = wanted.t() if isinstance(module, Conv1D) else wanted
        error = (2 * weight.dequantize() - wanted).square().sum() / wanted.square().sum()
        doubled[name] = float(error)
    return [layer for layer in done.manifest["layers"] if layer["bits"] is not None], doubled


def check(layers: list[dict], doubled: dict[str, float]) -> None:
    assert standouts(layers) == []
    assert len(doubled) == len(layers) >= 8
    for name, error in doubled.items():
        broken = [{**layer, "error": error} if layer["name"] == name else layer for layer in layers]
        # Measured from files, nobody says the bits.
        keys = ("name", "block", "shape", "error")
        blind = [{key: layer[key] for key in keys} for layer in broken]
        for found in (standouts(broken), standouts(blind)):
            assert [odd["name"] for odd in found] == [name]
            assert found[0]["error"] == error > 3 * found[0]["median"]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("method", ["rtn", "rows"])
def test_a_broken_layer_is_named(method: str, bits: int, any_model: Path) -> None:
    check(*quantized(any_model, method, bits))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("method", ["gptq", "spqr", "autoround"])
@pytest.mark.parametrize("model", ["llama", "glm4"])  # the second with blocks that differ much
def test_after_methods_that_raise_the_error_of_weights(model: str, method: str, bits: int) -> None:
    check(*quantized(zoo_model(model), method, bits))


@pytest.mark.parametrize("bits", [2, 4])
def test_a_real_model(bits: int, tinystories: Path) -> None:
    check(*quantized(tinystories, "rtn", bits))


def made(errors: dict[str, float], blocks: int = 6, bits: int = 4) -> list[LayerRecord]:
    """Blocks of three Linears, each a little worse than the block before."""
    spread = torch.linspace(1, 1.4, blocks).tolist()
    return [
        LayerRecord(
            f"h.{block}.{name}", "Linear", (8, 8), block, bits=bits, group_size=32, error=error * factor
        )
        for block, factor in enumerate(spread)
        for name, error in errors.items()
    ]


def with_errors(layers: list[LayerRecord], errors: dict[int, float]) -> list[LayerRecord]:
    """The same with other errors in some places."""
    return [replace(layer, error=errors.get(place, layer.error)) for place, layer in enumerate(layers)]


def test_the_words() -> None:
    layers = made({"up": 0.02, "down": 0.02, "q": 0.02})
    layers = with_errors(layers, {10: 0.98})
    (found,) = standouts(layers)
    assert found["name"] == "h.3.down"
    assert found["median"] == pytest.approx(0.0232, abs=2e-4)
    assert found["words"] == "h.3.down: error 0.98, 42 times that of its like"
    layers = with_errors(layers, {10: 0.5, 4: 23_000})
    assert [odd["name"] for odd in standouts(layers)] == ["h.1.down", "h.3.down"]
    assert standouts(layers)[0]["words"] == "h.1.down: error 2.3e+04, 870,000 times that of its like"


def test_a_kind_that_is_worse_in_every_block_is_no_standout() -> None:
    layers = made({"up": 0.02, "gate": 0.02, "v": 0.02, "q": 0.09})
    assert standouts(layers) == []
    layers = with_errors(layers, {3: 0.7})
    assert [odd["name"] for odd in standouts(layers)] == ["h.0.q"]


def test_a_model_whose_errors_are_all_over_the_place_has_no_line() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = made({"up": 0.002, "down": 0.002, "q": 0.002}, blocks=40)
    layers = [
        replace(layer, error=layer.error * float(torch.randn(1, generator=generator).exp()))
        for layer in layers
    ]
    # A normal distribution of logarithms: five standard deviations are never met among 120.
    assert max(layer.error for layer in layers) > 5 * sorted(layer.error for layer in layers)[60]
    assert standouts(layers) == []


def test_a_layer_with_a_grid_of_its_own() -> None:
    """Compared with coarser ones, which it should be better than; with finer ones it cannot be."""
    layers = made({"up": 0.02, "down": 0.02})
    fine = LayerRecord("lm_head", "Linear", (8, 8), None, bits=8, group_size=32, error=3e-5)
    coarse = LayerRecord("lm_head", "Linear", (8, 8), None, bits=2, group_size=32, error=0.2)
    assert standouts([*layers, fine]) == standouts([*layers, coarse]) == []
    (found,) = standouts([*layers, replace(fine, error=1.0)])
    assert found["words"] == "lm_head: error 1, 40 times that of the others"


def test_what_cannot_be_compared() -> None:
    assert standouts([]) == []
    three = [
        LayerRecord(f"h.{i}.up", "Linear", (8, 8), i, bits=4, error=e) for i, e in enumerate((1, 0.02, 0.02))
    ]
    assert standouts(three) == []
    left_out = LayerRecord("wte", "Embedding", (8, 8), None, reason="embedding")
    assert standouts([*made({"up": 0.0, "down": 0.0}), left_out]) == []


@pytest.mark.parametrize("error", [nan, inf])
def test_an_error_that_is_no_number_is_named_first(error: float) -> None:
    layers = made({"up": 0.02, "down": 0.02})
    layers = with_errors(layers, {3: 1.0, 5: error})
    found = standouts(layers)
    assert [odd["name"] for odd in found] == ["h.2.down", "h.1.down"]
    assert found[0]["error"] is None
    assert found[0]["words"] == "h.2.down: its error is not finite"
