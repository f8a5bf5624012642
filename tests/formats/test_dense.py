import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import roundel
from roundel.errors import ModelError


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_integers_lie_beside_the_dense_weights(
    any_model: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    """8 bit in bfloat16: the written weights alone no longer tell their codes."""
    source = AutoModelForCausalLM.from_pretrained(any_model, dtype=dtype)
    recipe = roundel.Recipe(method="rtn", bits=8, group_size=-1, act_bits=8, format="dense")
    result = roundel.quantize(source, recipe, output=tmp_path / "out")
    found = roundel.read_integers(tmp_path / "out")
    assert set(found) == set(result.weights)
    assert all(weight.equals(found[name]) for name, weight in result.weights.items())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, weight in found.items():
        module = plain.get_submodule(name)
        dense = weight.dequantize(dtype)
        assert torch.equal(module.weight, dense if isinstance(module, torch.nn.Linear) else dense.t())


def test_integers_come_from_our_own_container_too(llama: Path, tmp_path: Path) -> None:
    recipe = roundel.Recipe(method="rtn", bits=3, format="roundel")
    result = roundel.quantize(llama, recipe, output=tmp_path / "out")
    assert all(w.equals(result.weights[n]) for n, w in roundel.read_integers(tmp_path / "out").items())


def test_a_folder_without_integers_says_so(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a folder written as roundel or dense is expected"):
        roundel.read_integers(llama)
    roundel.quantize(llama, roundel.Recipe(method="rtn", format="dense"), output=tmp_path / "out")
    (tmp_path / "out" / "roundel_integers.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be read"):
        roundel.read_integers(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
