"""Checkpoints that are quantized already are read as transformers dequantizes them, where it does on this machine."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, FineGrainedFP8Config, Mxfp4Config

from model.stored.forms import Make, same
from roundel.model.source import open_source
from zoo import zoo_model
from zoo.quantized import fp8, mxfp4

pytestmark = pytest.mark.slow("builds and dequantizes sources of every form")


@pytest.mark.parametrize(
    ("name", "make", "config"),
    [
        ("llama", lambda m, f: fp8(m, f, (16, 32)), FineGrainedFP8Config(dequantize=True)),
        ("deepseek_v3", fp8, FineGrainedFP8Config(dequantize=True)),
        ("qwen3_moe", fp8, FineGrainedFP8Config(dequantize=True)),
        ("gpt_oss", mxfp4, Mxfp4Config(dequantize=True)),
    ],
)
def test_it_is_what_transformers_dequantizes(name: str, make: Make, config: Any, tmp_path: Path) -> None:
    source = make(zoo_model(name), tmp_path / "source")
    theirs = AutoModelForCausalLM.from_pretrained(source, quantization_config=config, dtype=torch.bfloat16)
    ours = open_source(str(source)).model
    same(ours.state_dict(), theirs.state_dict())
    ids = torch.arange(16).view(1, -1)
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)


SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    "4-bit groups": (
        "pack-quantized",
        {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": True},
    ),
    "4-bit groups, zeros": (
        "pack-quantized",
        {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False},
    ),
    "8-bit channels": ("int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": True}),
    "8-bit floats": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
    ),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_compressed_tensors_is_what_transformers_dequantizes(scheme: str, tmp_path: Path) -> None:
    """Written by the format's own library, as llm-compressor does; read by transformers with `dequantize`."""
    layout, weights = SCHEMES[scheme]
    model = AutoModelForCausalLM.from_pretrained(zoo_model("llama"), dtype=torch.bfloat16)
    groups: dict[str, Any] = {"group_0": {"targets": ["Linear"], "weights": weights}}
    if layout == "int-quantized":  # the library's choice where inputs are integers too
        groups["group_0"]["input_activations"] = {"num_bits": 8, "strategy": "token", "dynamic": True}
    about = QuantizationConfig(
        config_groups=groups, ignore=["lm_head"], format=layout, quantization_status="frozen"
    )
    apply_quantization_config(model, about)
    for name, module in model.named_modules():
        if getattr(module, "quantization_scheme", None) is not None:
            parts = module.weight.float().unflatten(
                1, (-1, weights.get("group_size") or module.weight.shape[1])
            )
            reach = 448 if weights.get("type") == "float" else 2 ** (weights["num_bits"] - 1) - 1
            module.weight_scale.data = (parts.abs().amax(-1) / reach).to(module.weight_scale.dtype)
            assert name != "lm_head"
    compressor = ModelCompressor(quantization_config=about)
    compressor.compress_model(model)
    source = tmp_path / "source"
    model.save_pretrained(source)
    words = json.loads((source / "config.json").read_text(encoding="utf-8"))
    words["quantization_config"] = {**about.model_dump(mode="json"), "quantization_status": "compressed"}
    words["quantization_config"]["quant_method"] = "compressed-tensors"
    (source / "config.json").write_text(json.dumps(words), encoding="utf-8")
    theirs = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=CompressedTensorsConfig(dequantize=True), dtype=torch.bfloat16
    )
    opened = open_source(str(source))
    assert opened.read_from.startswith(f"read from compressed-tensors ({weights['num_bits']}-bit")
    assert ("its quantization of inputs is left out" in opened.read_from) == (layout == "int-quantized")
    same(opened.model.state_dict(), theirs.state_dict())
    streamed = open_source(str(source), stream_with=tmp_path / "unused")
    same(dict(streamed.storage.tensors(streamed.model)), theirs.state_dict())
