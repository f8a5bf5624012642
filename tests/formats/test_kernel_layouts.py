"""Folders in the layouts of GPTQ, AWQ and AutoRound hold the tuned model, by plain formulas and as Roundel reads."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig

import roundel
from formats.kernel_words import FIRST_VERSION, Tensors, as_stored, awq_weight, gptq_weight
from formats.test_compressed_tensors import content_of
from roundel.errors import FormatError
from roundel.formats import CONTAINERS
from zoo import zoo_model

pytestmark = pytest.mark.slow("writes models in many settings")

IDS = torch.randint(1, 1000, (2, 40), generator=torch.Generator().manual_seed(0))
LAYOUTS = ("gptq", "gptq_v2", "awq", "auto-round")
# 48 outputs of the small Llama: not for three bits in words, nor for AutoRound's rounds of 32.
NARROW = ("*.k_proj", "*.v_proj")


def recipe_of(format: str, **settings: Any) -> roundel.Recipe:
    narrow = format == "auto-round" or settings.get("bits") == 3
    given = {"method": "rtn", "bits": 4, "group_size": 32, "skip": NARROW if narrow else (), **settings}
    return roundel.Recipe.create(**given, format=format)


def about(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found["quantization_config"]


def stored(folder: Path) -> Tensors:
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def weight_in(folder: Path, name: str, bits: int, group: int) -> torch.Tensor:
    """As a client that knows the config alone computes it."""
    tensors = {
        key.removeprefix(f"{name}."): t for key, t in stored(folder).items() if key.startswith(f"{name}.")
    }
    said = about(folder)
    if said["quant_method"] == "awq":
        return awq_weight(tensors, len(tensors["qweight"]) if group == -1 else group)
    first = said.get("checkpoint_format") == "gptq" or said.get("packing_format") == "auto_round:auto_gptq"
    width = tensors["qweight"].shape[0] * 32 // bits if group == -1 else group
    found = [gptq_weight(tensors, bits, r, width) for r in (FIRST_VERSION if first else (as_stored,))]
    assert all(torch.equal(found[0], other) for other in found)
    return found[0]


@torch.no_grad()
def opens_as_tuned(folder: Path, result: roundel.Quantized) -> None:
    loaded, _ = roundel.load(folder, packed=False)
    assert torch.equal(loaded(input_ids=IDS).logits, result.model(input_ids=IDS).logits)
    assert loaded.dtype == result.model.dtype


WIDTHS = [(name, bits) for name in LAYOUTS for bits in ((4,) if name == "awq" else (2, 3, 4, 8))]


@pytest.mark.parametrize(("format", "bits"), [*WIDTHS, *(("auto-round", bits) for bits in (5, 6, 7))])
@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("group_size", [32, -1])
def test_every_width_is_read_exactly(
    format: str, bits: int, sym: bool, group_size: int, llama: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = roundel.quantize(llama, recipe_of(format, bits=bits, sym=sym, group_size=group_size), output=out)
    opens_as_tuned(out, result)
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        found = weight_in(out, name, bits, group_size)
        assert torch.equal(found, result.weights[name].dequantize())
    said = about(out)
    assert (said["bits"], said["group_size"]) == (bits, group_size)
    assert said["zero_point"] if format == "awq" else said["sym"] is sym


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("format", LAYOUTS)
def test_half_precision_models_keep_their_scales(
    format: str, dtype: torch.dtype, llama: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=dtype)
    result = roundel.quantize(model, recipe_of(format), output=tmp_path / "out")
    opens_as_tuned(tmp_path / "out", result)
    assert {t.dtype for name, t in stored(tmp_path / "out").items() if name.endswith(".scales")} == {dtype}


@pytest.mark.parametrize("architecture", ["opt", "bloom", "qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("format", ["gptq", "gptq_v2", "awq"])
def test_biases_heads_and_experts_come_along(format: str, architecture: str, tmp_path: Path) -> None:
    heads = {"lm_head": True} if architecture in ("opt", "bloom") else {}
    result = roundel.quantize(zoo_model(architecture), recipe_of(format, **heads), output=tmp_path / "out")
    opens_as_tuned(tmp_path / "out", result)
    assert about(tmp_path / "out")["lm_head"] is bool(heads)
    if architecture == "qwen3_moe":
        experts = {n for n in stored(tmp_path / "out") if re.search(r"experts\.3\.up_proj\.qweight$", n)}
        assert experts


@pytest.mark.parametrize("format", LAYOUTS)
def test_block_by_block_gives_the_same_files(format: str, llama: Path, tmp_path: Path) -> None:
    for stream in (False, True):
        roundel.quantize(
            llama, recipe_of(format), output=tmp_path / str(stream), stream=stream, held_out=None
        )
    one, other = stored(tmp_path / "False"), stored(tmp_path / "True")
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("format", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("sym", [False, True])
def test_an_order_of_columns_is_carried_by_the_index(
    format: str, sym: bool, llama: Path, tmp_path: Path
) -> None:
    ordered = {"method": "gptq", "order": "act_order", "nsamples": 4, "seqlen": 32}
    result = roundel.quantize(
        llama, recipe_of(format, sym=sym, **ordered), calibration="pydoc", output=tmp_path / "out"
    )
    opens_as_tuned(tmp_path / "out", result)
    name = "model.layers.0.mlp.down_proj"
    weight = result.weights[name]
    assert weight.order is not None
    assert torch.equal(weight_in(tmp_path / "out", name, 4, 32), weight.dequantize())
    assert about(tmp_path / "out")["desc_act"] is True
    groups = stored(tmp_path / "out")[f"{name}.g_idx"][weight.order]
    assert groups.tolist() == [place // 32 for place in range(256)]


MIXED: dict[str, Any] = {
    "layers": {
        "*.down_proj": {"bits": 8},
        "model.layers.1.mlp.*_proj": {"bits": 2, "sym": True},
        "*.o_proj": {"group_size": 16},
    },
    "skip": ("model.layers.0.self_attn.q_proj", *NARROW),
}


def grids(result: roundel.Quantized) -> dict[str, tuple[int, int, bool]]:
    return {name: (w.scheme.bits, w.scheme.group_size, w.scheme.sym) for name, w in result.weights.items()}


@pytest.mark.parametrize("format", ["gptq", "gptq_v2"])
def test_dynamic_rules_say_what_each_layer_is(format: str, llama: Path, tmp_path: Path) -> None:
    """Looked up as vLLM and GPTQModel do: the first pattern that matches from the beginning of the name."""
    result = roundel.quantize(llama, recipe_of(format, **MIXED), output=tmp_path / "out")
    opens_as_tuned(tmp_path / "out", result)
    said = about(tmp_path / "out")

    def ruled(name: str) -> tuple[int, int, bool] | None:
        for pattern, rule in said["dynamic"].items():
            if re.match(pattern[2:], name):
                own = {**said, **rule}
                return None if pattern.startswith("-:") else (own["bits"], own["group_size"], own["sym"])
        return said["bits"], said["group_size"], said["sym"]

    wanted = grids(result)
    for name in (n for n, m in result.model.named_modules() if isinstance(m, torch.nn.Linear)):
        assert ruled(name) == wanted.get(name) or name == "lm_head"
    assert ruled("model.layers.1.mlp.gate_up_proj") == (2, 32, True)
    for name, (bits, group, _) in wanted.items():
        assert torch.equal(weight_in(tmp_path / "out", name, bits, group), result.weights[name].dequantize())
    # transformers keeps what ends so, vLLM what holds it.
    kept = said["modules_in_block_to_quantize"][0]
    linears = [n for n, m in result.model.named_modules() if isinstance(m, torch.nn.Linear)]
    assert {name for name in linears if name.endswith(tuple(kept))} == wanted.keys()


def test_extra_config_says_what_each_layer_is(llama: Path, tmp_path: Path) -> None:
    result = roundel.quantize(llama, recipe_of("auto-round", **MIXED), output=tmp_path / "out")
    opens_as_tuned(tmp_path / "out", result)
    said = about(tmp_path / "out")
    assert said["packing_format"] == "auto_round"
    wanted = grids(result)
    for index in range(2):
        for name, module in result.model.model.layers[index].named_modules():
            if isinstance(module, torch.nn.Linear):
                full = f"model.layers.{index}.{name}"
                own = {**said, **said["extra_config"].get(full, {})}
                found = (own["bits"], own["group_size"], own["sym"])
                assert found == wanted[full] if full in wanted else own["bits"] == 16
    assert said["block_name_to_quantize"] == "model.layers"


def test_awq_names_what_is_left_out_for_either_client(llama: Path, tmp_path: Path) -> None:
    left = ("*.v_proj", "model.layers.1.mlp.up_proj")
    result = roundel.quantize(llama, recipe_of("awq", skip=left), output=tmp_path / "out")
    said = about(tmp_path / "out")
    for name, module in result.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            kept = any(part in name for part in said["modules_to_not_convert"])
            ruled = any(re.match(pattern.removeprefix("-:"), name) for pattern in said["dynamic"])
            assert kept == ruled == (name not in result.weights)


def test_transformers_parses_the_configs(llama: Path, tmp_path: Path) -> None:
    for format in ("gptq", "gptq_v2", "awq"):
        roundel.quantize(llama, recipe_of(format), output=tmp_path / format)
        parsed = (AwqConfig if format == "awq" else GPTQConfig).from_dict(about(tmp_path / format))
        assert (parsed.bits, parsed.group_size) == (4, 32)
        if format != "awq":
            assert (parsed.format, parsed.sym, parsed.desc_act) == (format, False, False)


@pytest.mark.parametrize("whole", [True, False], ids=["in memory", "streamed"])
@pytest.mark.parametrize("format", LAYOUTS)
def test_the_check_finds_every_difference(format: str, whole: bool, llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = roundel.quantize(llama, recipe_of(format), output=out)
    content, file = content_of(result, whole), out / "model.safetensors"
    good = load_file(file)
    owner = "model.layers.1.mlp.up_proj"
    parts = [name for name in good if name.startswith(f"{owner}.")]
    assert len(parts) == (4 if format.startswith("gptq") else 3)
    for name in (*parts, "model.norm.weight"):
        for damage in ("change", "drop"):
            tensors = {k: v.clone() for k, v in good.items()}
            if damage == "drop":
                del tensors[name]
            else:
                tensors[name].view(torch.uint8).flatten()[0] ^= 1
            if damage == "drop" and name.endswith(".g_idx"):
                continue  # in order without it
            save_file(tensors, file, metadata={"format": "pt"})
            with pytest.raises(FormatError, match=re.escape(name.rpartition(".")[0])):
                CONTAINERS[format].verify(out, content, trust_remote_code=False)
    save_file(good, file, metadata={"format": "pt"})
    CONTAINERS[format].verify(out, content, trust_remote_code=False)
