"""Roundel's own container: everything fits, nothing changes, and its size is what the formula says."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

import roundel
from roundel.errors import FormatError, ModelError
from roundel.formats.integers import read_integers
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.grid.serialization import pack_weight, unpack_weight
from roundel.methods.options import HessianOptions
from roundel.methods.spqr import spqr

pytestmark = pytest.mark.slow("writes four architectures in many settings")

FILE = "roundel.safetensors"
TWO_LEVEL = {"round_zero": False, "scale_bits": 3, "zero_bits": 3}
DATA = {"nsamples": 16, "seqlen": 64}


def make(scheme: Scheme, shape: tuple[int, int] = (24, 50), **options: object) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    inputs = torch.randn(200, shape[1], generator=generator)
    return spqr(weight, inputs.T @ inputs / 200, scheme, HessianOptions(**options), "search").weight


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(
    "kind",
    [
        {**TWO_LEVEL, "group_size": 16}, {**TWO_LEVEL, "group_size": 7, "tile_rows": 5, "zero_bits": 5},
        {"round_zero": False, "scale_bits": 6, "group_size": 16}, {"round_zero": False, "group_size": -1},
        {"scale_bits": 4, "group_size": 16}, {"group_size": 16}, {"sym": True, "group_size": -1},
        {"group_size": 16, "scale_dtype": "bfloat16"}, {"group_size": 16, "scale_dtype": "float32"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(
    "options", [{}, {"outliers": 0.03}, {"outliers": 0.2, "order": "act_order"}], ids=str
)
def test_a_weight_comes_back_bit_for_bit_in_its_real_size(bits: int, kind: dict, options: dict) -> None:
    weight = make(Scheme(bits=bits, **kind), **options)
    parts = pack_weight(weight)
    assert 8 * sum(t.numel() * t.element_size() for t in parts.values()) == weight.stored_bits()
    stored = {f"x.{part}": tensor for part, tensor in parts.items()}
    again = unpack_weight(stored, "x", list(weight.shape), weight.scheme)
    assert again.equals(weight)
    assert torch.equal(again.dequantize(), weight.dequantize())
    assert stored == {}


def test_three_bits_in_groups_of_sixteen_take_3_625_bits() -> None:
    weight = make(Scheme(bits=3, group_size=16, **TWO_LEVEL), (64, 256))
    assert weight.bits_per_weight() == 3.625


def test_many_outliers_in_wide_rows() -> None:
    weight = make(Scheme(bits=3, group_size=16, **TWO_LEVEL), (4, 700), outliers=0.1)
    parts = pack_weight(weight)
    assert parts["outliers.positions"].dtype == torch.uint8
    assert parts["outliers.counts"].shape == (4, 3)
    stored = {f"x.{part}": tensor for part, tensor in parts.items()}
    assert unpack_weight(stored, "x", [4, 700], weight.scheme).equals(weight)


@pytest.fixture(scope="module")
def written(any_model: Path, tmp_path_factory) -> tuple[roundel.Quantized, Path]:
    recipe = roundel.Recipe(method="spqr", bits=3, outliers="1%", order="act_order", lm_head=True, **DATA)
    out = tmp_path_factory.mktemp("spqr") / "out"
    return roundel.quantize(any_model, recipe, calibration="pydoc", output=out), out


def test_the_reloaded_model_gives_the_same_logits(written: tuple[roundel.Quantized, Path]) -> None:
    result, out = written
    model, tokenizer = roundel.load(out, packed=False)
    assert tokenizer is not None
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, result.model(ids).logits)
    assert type(model) is type(result.model)
    assert model.generation_config.eos_token_id == result.model.generation_config.eos_token_id


def test_the_file_holds_the_integers(written: tuple[roundel.Quantized, Path]) -> None:
    result, out = written
    stored = read_integers(out / FILE)
    assert stored.weights.keys() == result.weights.keys()
    assert all(stored.weights[name].equals(weight) for name, weight in result.weights.items())
    bits = 0
    with safe_open(out / FILE, "pt") as file:
        for key in file.keys():  # noqa: SIM118
            if any(key.startswith(f"{name}.") for name in result.weights) and not key.endswith("bias"):
                tensor = file.get_tensor(key)
                bits += 8 * tensor.numel() * tensor.element_size()
    count = sum(weight.codes.numel() for weight in result.weights.values())
    assert bits / count == pytest.approx(result.manifest["bits_per_weight"])


def test_the_whole_folder_is_weighed(written: tuple[roundel.Quantized, Path]) -> None:
    from roundel.records.folder import read_contents

    result, out = written
    contents = read_contents(out)
    size = (out / FILE).stat().st_size
    assert contents.file_bytes == size == result.manifest["file_bytes"]
    assert contents.bits_per_parameter == result.manifest["bits_per_parameter"]
    assert contents.bits_per_parameter == 8 * size / result.manifest["original"]["parameters"]
    for name, weight in result.weights.items():
        assert contents.stored_bytes[name] * 8 >= weight.stored_bits()


def test_it_runs_and_is_measured(
    written: tuple[roundel.Quantized, Path], held_out: Path, any_model: Path
) -> None:
    _, out = written
    figures = roundel.evaluate(out, reference=any_model, text=str(held_out), window=64, limit=4)
    assert 0 < figures.texts[0].kl.mean.value < 1
    assert roundel.generate(out, "The statement", max_new_tokens=3).startswith("The statement")


def test_no_other_client_takes_it_for_a_model(
    written: tuple[roundel.Quantized, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers is where Roundel is not imported; tests/runtime/test_hf_quantizer.py has processes for it."""
    monkeypatch.delitem(AUTO_QUANTIZATION_CONFIG_MAPPING, "roundel")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(written[1])


def test_it_is_not_quantized_again(written: tuple[roundel.Quantized, Path]) -> None:
    with pytest.raises(ModelError, match="quantized already"):
        roundel.quantize(written[1], "rtn-w4g128")


def test_damaged_files_are_refused(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    roundel.quantize(llama, roundel.Recipe(method="rtn", group_size=32, format="roundel"), output=out)
    whole = (out / FILE).read_bytes()
    (out / FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="a whole folder is expected"):
        roundel.load(out)
    (out / FILE).write_bytes(
        whole.replace(b'version\\\\\\": 1', b'version\\\\\\": 9').replace(b'version\\": 1', b'version\\": 9')
    )
    with pytest.raises(ModelError, match="a newer roundel is expected"):
        roundel.load(out)


def test_other_integers_are_not_delivered(llama: Path, tmp_path: Path, monkeypatch) -> None:
    from roundel.grid import serialization

    honest = serialization.pack
    monkeypatch.setattr(serialization, "pack", lambda codes, bits: honest(codes, bits) ^ 1)
    recipe = roundel.Recipe(method="rtn", group_size=32, format="roundel")
    with pytest.raises(FormatError, match="read back with other integers"):
        roundel.quantize(llama, recipe, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_dense_carries_it_too(llama: Path, tmp_path: Path) -> None:
    recipe = roundel.Recipe(method="spqr", bits=3, outliers=0.01, format="dense", **DATA)
    result = roundel.quantize(llama, recipe, calibration="pydoc", output=tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    name = "model.layers.0.mlp.up_proj"
    assert torch.equal(model.get_submodule(name).weight, result.weights[name].dequantize())
    assert json.loads((tmp_path / "out" / "roundel.json").read_text())["outlier_share"] > 0.009
