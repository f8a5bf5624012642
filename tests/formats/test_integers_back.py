"""Every container gives back the integers that it has written: those that were tuned, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

import roundel
from formats.test_kernel_layouts import NARROW
from roundel.formats import CONTAINERS
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.model.experts import divide
from zoo import zoo_model

pytestmark = pytest.mark.slow("writes models in many settings")

SPQR = {"bits": 3, "group_size": 16, "scale_bits": 3, "zero_bits": 3, "tile_rows": 16, "skip": ()}
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    *(("compressed-tensors", {"bits": bits, "sym": sym}) for bits in (2, 3, 5, 8) for sym in (True, False)),
    ("compressed-tensors", {"group_size": 64}),  # of 96 inputs: split
    ("compressed-tensors", {"group_size": 64, "sym": True}),
    ("compressed-tensors", {"group_size": -1}),
    ("compressed-tensors", {"layers": {"*.up_proj": {"bits": 8, "group_size": -1}}}),  # block strategy
    ("compressed-tensors", {"bits": 8, "act_bits": 8}),  # unpacked
    *((name, {"bits": bits}) for name in ("gptq", "gptq_v2", "auto-round") for bits in (2, 3, 4, 8)),
    *((name, {"sym": True}) for name in ("gptq", "gptq_v2", "auto-round", "awq")),
    ("awq", {}),
    *((name, {"group_size": 64}) for name in ("gptq", "awq", "auto-round")),
    ("auto-round", {"bits": 5, "layers": {"*.up_proj": {"sym": True}}}),
    *(("gguf", {"type": kind}) for kind in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q6_k")),
    ("gguf", {"type": "q2_k", "embedding_bits": 6, "head_bits": 5}),
    ("spqr", {**SPQR, "method": "spqr", "outliers": 0.01, "order": "act_order"}),
    ("roundel", {"method": "spqr", "bits": 3, "outliers": 0.01}),
    ("dense", {"round_zero": False}),
]


def written(architecture: str, format: str, out: Path, **settings: Any) -> roundel.Quantized:
    given = {"method": "rtn", "skip": NARROW, **settings}
    given |= {} if "type" in settings or given["method"] == "spqr" else {"group_size": 32, **settings}
    given |= {"nsamples": 4, "seqlen": 32} if given["method"] in ("spqr", "gptq") else {}
    recipe = roundel.Recipe.create(**given, format=format)
    data = "pydoc" if recipe.needs_calibration else None
    return roundel.quantize(zoo_model(architecture), recipe, output=out, calibration=data)


def read(out: Path, format: str, result: roundel.Quantized) -> dict[str, QuantizedWeight]:
    divide(result.model)
    schemes = {name: weight.scheme for name, weight in result.weights.items()}
    integers = CONTAINERS[format].integers(out, result.model, schemes)
    return {name: integers(name) for name in schemes}


@pytest.mark.parametrize(("format", "settings"), SETTINGS, ids=str)
def test_they_are_those_that_were_tuned(format: str, settings: dict[str, Any], tmp_path: Path) -> None:
    result = written("llama", format, tmp_path / "out", **settings)
    found = read(tmp_path / "out", format, result)
    for name, weight in result.weights.items():
        assert found[name].equals(weight), name


@pytest.mark.parametrize("format", ["compressed-tensors", "gptq", "awq", "auto-round"])
@pytest.mark.parametrize("architecture", ["mixtral", "phi3"])
def test_parts_and_experts_are_put_together(format: str, architecture: str, tmp_path: Path) -> None:
    result = written(architecture, format, tmp_path / "out", sym=True, skip=())
    found = read(tmp_path / "out", format, result)
    assert all(found[name].equals(weight) for name, weight in result.weights.items())


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "phi3"])
def test_rows_that_moved_come_back(architecture: str, tmp_path: Path) -> None:
    result = written(architecture, "gguf", tmp_path / "out", type="q4_0", skip=())
    found = read(tmp_path / "out", "gguf", result)
    assert all(found[name].equals(weight) for name, weight in result.weights.items())


@pytest.mark.parametrize("format", ["gptq", "gptq_v2"])
def test_of_an_order_the_groups_come_back(format: str, tmp_path: Path) -> None:
    result = written("llama", format, tmp_path / "out", method="gptq", order="act_order")
    found = read(tmp_path / "out", format, result)
    for name, weight in result.weights.items():
        assert found[name].order is not None
        assert torch.equal(found[name].dequantize(), weight.dequantize())
        assert torch.equal(found[name].scale, weight.scale)
