"""transformers' spqr container, read back by a decoder that shares no code with the writer."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, SpQRConfig

import roundel
from roundel.errors import FormatError

SPQR = {
    "method": "spqr", "bits": 3, "scale_bits": 3, "zero_bits": 3, "tile_rows": 16, "format": "spqr", "nsamples": 16,
    "seqlen": 64,
}  # fmt: skip


def half(bits: int) -> float:
    return struct.unpack("<e", struct.pack("<H", bits))[0]


def decode(tensors: dict[str, torch.Tensor], name: str, out: int, width: int) -> torch.Tensor:
    """One weight from its four tensors, bit by bit in plain Python, columns in the order of the inputs."""
    words = [word % 2**64 for word in tensors[f"{name}.dense_weights"].tolist()]
    weight = [[0.0] * width for _ in range(out)]
    for tile_row in range(out // 16):
        for tile_column in range(width // 16):
            first = (tile_row * (width // 16) + tile_column) * 16
            tile = words[first : first + 16]
            statistics = 0
            for k in range(16):
                assert tile[k] >> 62 == 0
                statistics |= (tile[k] >> 54) << 8 * (k // 2)
            ss, zs, sz, zz = (half(statistics >> 16 * i & 0xFFFF) for i in range(4))
            for k, word in enumerate(tile):
                scale, zero = ss * ((word & 7) - sz), zs * ((word >> 3 & 7) - zz)
                for place in range(16):
                    code = word >> 6 + 3 * place & 7
                    weight[16 * tile_row + k][16 * tile_column + place] = scale * (code - zero)
    offsets = tensors[f"{name}.row_offsets"].tolist()
    col_vals = [value % 2**32 for value in tensors[f"{name}.col_vals"].tolist()]
    for row in range(out):
        for entry in col_vals[offsets[row] : offsets[row + 1]]:
            weight[row][entry & 0xFFFF] += half(entry >> 16)
    order = [pair % 2**32 for pair in tensors[f"{name}.in_perm"].tolist()]
    order = [channel for pair in order for channel in (pair & 0xFFFF, pair >> 16)] or list(range(width))
    found = torch.tensor(weight)
    return torch.empty_like(found).index_copy_(1, torch.tensor(order), found)


@pytest.mark.parametrize(
    "changes", [{"outliers": 0.02}, {"outliers": 0.02, "order": "act_order"}, {}], ids=str
)
def test_an_independent_decoder_finds_the_tuned_weights(llama: Path, changes: dict, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = roundel.quantize(llama, roundel.Recipe(**SPQR, **changes), calibration="pydoc", output=out)
    tensors = load_file(out / "model.safetensors")
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"):
        weight = result.weights[name]
        assert torch.allclose(decode(tensors, name, *weight.shape), weight.dequantize(), rtol=1e-5, atol=1e-7)
        assert tensors[f"{name}.dense_weights"].dtype == torch.int64
        assert tensors[f"{name}.row_offsets"].dtype == tensors[f"{name}.col_vals"].dtype == torch.int32
    assert tensors["lm_head.weight"].dtype == torch.float16


def test_transformers_parses_the_config(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = roundel.quantize(llama, roundel.Recipe(**SPQR), calibration="pydoc", output=out)
    config = AutoConfig.from_pretrained(out)
    assert config.dtype == torch.float16
    parsed = SpQRConfig.from_dict(config.quantization_config)
    assert (parsed.bits, parsed.beta1, parsed.beta2) == (3, 16, 16)
    assert parsed.modules_to_not_convert == ["lm_head.weight"]
    assert json.loads((out / "config.json").read_text())["quantization_config"]["quant_method"] == "spqr"
    tensors = load_file(out / "model.safetensors")
    for name in result.weights:
        for part in ("dense_weights", "row_offsets", "col_vals", "in_perm"):
            assert parsed.shapes[f"{name}.{part}.shape"] == tensors[f"{name}.{part}"].numel()
    assert result.model.dtype == torch.float32
    assert not hasattr(result.model.config, "quantization_config")


@pytest.mark.parametrize(
    ("model", "changes", "complaint"),
    [
        ("opt", {}, "has a bias: layers without"),
        ("gpt2", {}, "is a Conv1D: Linear layers"),
        ("llama", {"bits": 4}, "has bits, group_size, scale_bits, zero_bits, tile_rows = 4, 16, 3, 3, 16"),
        (
            "llama",
            {"tile_rows": 8},
            r"3, 16, 3, 3, 16 and float16 are what transformers' spqr container carries",
        ),
        ("llama", {"scale_dtype": "bfloat16"}, "bfloat16 statistics"),
    ],
)
def test_refusals_name_a_way_out(model: str, changes: dict, complaint: str, tmp_path: Path) -> None:
    from zoo import zoo_model

    recipe = roundel.Recipe(**{**SPQR, **changes})
    with pytest.raises(FormatError, match=complaint) as refusal:
        roundel.quantize(zoo_model(model), recipe, calibration="pydoc", output=tmp_path / "out")
    assert "--format roundel" in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_rows_that_do_not_fit_a_tile_are_refused(llama: Path, load_model, tmp_path: Path) -> None:
    model, tokenizer = load_model(llama)
    mlp = model.model.layers[1].mlp
    mlp.up_proj = torch.nn.Linear(96, 250, bias=False)
    mlp.gate_proj, mlp.down_proj = torch.nn.Linear(96, 250, bias=False), torch.nn.Linear(250, 96, bias=False)
    with pytest.raises(FormatError, match="is 250x96: multiples of 16"):
        roundel.quantize(
            model, roundel.Recipe(**SPQR), calibration="pydoc", tokenizer=tokenizer, output=tmp_path / "out"
        )
    # Our own container takes it.
    recipe = roundel.Recipe(**{**SPQR, "format": "roundel", "outliers": 0.01})
    result = roundel.quantize(model, recipe, calibration="pydoc", tokenizer=tokenizer)
    assert result.weights["model.layers.1.mlp.down_proj"].shape == (96, 250)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"method": "spqr"}, "scales or zero points on two levels"),
        ({"method": "rtn", "round_zero": False}, "real zero points"),
        (
            {"method": "spqr", "scale_bits": None, "zero_bits": None, "round_zero": True, "outliers": 0.01},
            "outliers",
        ),
        (
            {"method": "gptq", "group_size": 32, "order": "act_order"},
            "order=group_aware or static_groups=true",
        ),
    ],
)
def test_compressed_tensors_refuses_what_it_cannot_carry(
    llama: Path, changes: dict, complaint: str, tmp_path: Path
) -> None:
    recipe = roundel.Recipe(**{"format": "compressed-tensors", **changes})
    calibration = "pydoc" if recipe.needs_calibration else None
    with pytest.raises(FormatError, match=complaint):
        roundel.quantize(llama, recipe, calibration=calibration, output=tmp_path / "out")
