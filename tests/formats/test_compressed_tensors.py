import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import roundel
from roundel.activations.scheme import Activations, ActivationScheme
from roundel.errors import FormatError
from roundel.formats import CONTAINERS, Content, Layer, Piece
from roundel.formats.source_files import SourceFiles
from roundel.grid.scheme import Scheme
from zoo import zoo_model

pytestmark = pytest.mark.slow("writes four architectures in many settings")

IDS = torch.randint(1, 1000, (2, 40), generator=torch.Generator().manual_seed(0))


def content_of(result: roundel.Quantized, whole: bool) -> Content:
    """What was written, from the result in memory."""
    state = result.model.state_dict()
    others = {n: t for n, t in state.items() if n.removesuffix(".weight") not in result.weights}
    schemes = {name: weight.scheme for name, weight in result.weights.items()}
    return Content(result.model, schemes, lambda: iter([Piece(result.weights, others)]), whole=whole)


@torch.no_grad()
def logits_equal(folder: Path, model: torch.nn.Module) -> bool:
    """A plain from_pretrained in transformers gives the tuned model's logits."""
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
    return torch.equal(reloaded(input_ids=IDS).logits, model(input_ids=IDS).logits)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("group_size", [32, -1])
def test_every_width_reloads_exactly(
    bits: int, sym: bool, group_size: int, llama: Path, tmp_path: Path
) -> None:
    recipe = roundel.Recipe(method="rtn", bits=bits, sym=sym, group_size=group_size)
    result = roundel.quantize(llama, recipe, output=tmp_path / "out")
    assert logits_equal(tmp_path / "out", result.model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("scale_dtype", ["auto", "float16", "float32"])
def test_half_precision_models_reload_exactly(
    dtype: torch.dtype, sym: bool, scale_dtype: str, llama: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=dtype)
    recipe = roundel.Recipe(method="rtn", bits=4, sym=sym, group_size=32, scale_dtype=scale_dtype)
    result = roundel.quantize(model, recipe, output=tmp_path / "out")
    assert result.model.dtype == dtype
    assert logits_equal(tmp_path / "out", result.model)


@pytest.mark.parametrize("sym", [False, True])
def test_mixed_widths_and_groups_reload_exactly(sym: bool, llama: Path, tmp_path: Path) -> None:
    layers = {
        "*.down_proj": {"bits": 8},
        "*.q_proj": {"group_size": -1},
        "*.o_proj": {"sym": True, "bits": 3},
    }
    recipe = roundel.Recipe(method="rtn", bits=2, sym=sym, group_size=32, layers=layers)
    result = roundel.quantize(llama, recipe, output=tmp_path / "out")
    assert logits_equal(tmp_path / "out", result.model)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert "dequantize" not in config  # transformers would read every layer by the first group
    assert len(config["config_groups"]) == 4


def test_groups_that_do_not_divide_are_split_without_changing_a_weight(llama: Path, tmp_path: Path) -> None:
    recipe = roundel.Recipe(method="rtn", bits=4, group_size=64)  # of 96 and 256 channels
    result = roundel.quantize(llama, recipe, output=tmp_path / "out")
    assert result.weights["model.layers.0.self_attn.q_proj"].scale.shape == (96, 2)
    assert logits_equal(tmp_path / "out", result.model)


def test_the_config_has_what_vllm_reads(llama: Path, tmp_path: Path) -> None:
    roundel.quantize(llama, roundel.Recipe(method="rtn", bits=4, group_size=32), output=tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    group = config["config_groups"]["group_0"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["format"] == group["format"] == "pack-quantized"
    assert config["ignore"] == ["lm_head"]
    assert group["targets"] == ["Linear"]
    assert group["weights"] == {
        "num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32,
        "dynamic": False, "actorder": None,
    }  # fmt: skip


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_a_quantized_head_reloads_exactly(architecture: str, tmp_path: Path) -> None:
    from zoo import zoo_model

    recipe = roundel.Recipe(method="rtn", bits=8, group_size=32, lm_head=True)
    result = roundel.quantize(zoo_model(architecture), recipe, output=tmp_path / "out")
    assert "lm_head" in result.weights
    assert logits_equal(tmp_path / "out", result.model)
    embedding = result.model.get_input_embeddings().weight
    assert not torch.equal(embedding, result.model.lm_head.weight)


def test_biases_come_along(any_model: Path, tmp_path: Path) -> None:
    if any_model.name == "gpt2":
        pytest.skip("Conv1D is not carried; its refusal has a test of its own")
    result = roundel.quantize(
        any_model, roundel.Recipe(method="rtn", bits=4, group_size=32), output=tmp_path / "out"
    )
    assert logits_equal(tmp_path / "out", result.model)


def test_conv1d_is_refused_before_the_work(gpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"h\.0\.attn\.c_attn is a Conv1D.*--format dense"):
        roundel.quantize(gpt2, "autoround-w4g128", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def skeleton(dtype: torch.dtype):
    """A model that the layers of a check may be of."""
    return AutoModelForCausalLM.from_pretrained(zoo_model("llama"), dtype=dtype)


def test_a_group_that_fits_no_kernel_is_refused_with_those_that_do() -> None:
    layer = Layer("model.layers.0.mlp.down_proj", "Linear", (576, 576), Scheme(bits=4, group_size=100))
    with pytest.raises(
        FormatError, match=r"group_size 100 .* 576 of model\.layers\.0\.mlp\.down_proj.* 32, 48, 64"
    ):
        CONTAINERS["compressed-tensors"].check([layer], skeleton(torch.float32), Activations(), SourceFiles())


def test_schemes_that_no_form_carries_are_refused() -> None:
    layers = [
        Layer(
            f"model.layers.{bits - 2}.mlp.up_proj",
            "Linear",
            (64, 64),
            Scheme(bits=bits, group_size=32, scale_dtype="float16"),
        )
        for bits in (2, 3)
    ]
    with pytest.raises(FormatError, match="leave scale_dtype out"):
        CONTAINERS["compressed-tensors"].check(layers, skeleton(torch.bfloat16), Activations(), SourceFiles())


@pytest.mark.parametrize("whole", [True, False], ids=["opened whole", "tensor by tensor"])
@pytest.mark.parametrize("format", ["compressed-tensors", "dense"])
def test_the_reload_check_finds_every_difference(
    format: str, whole: bool, llama: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    recipe = roundel.Recipe(method="rtn", bits=4, group_size=32, format=format)
    result = roundel.quantize(llama, recipe, output=tmp_path / "out")
    content = content_of(result, whole)
    file = tmp_path / "out" / "model.safetensors"
    good = load_file(file)
    for key in ("model.layers.1.mlp.up_proj.", "model.norm.weight"):
        name = next(k for k in good if k.startswith(key) and "shape" not in k and "zero" not in k)
        for damage in ("change", "drop"):
            tensors = {k: v.clone() for k, v in good.items()}
            if damage == "drop":
                del tensors[name]
            else:
                tensors[name].view(torch.uint8 if tensors[name].ndim == 1 else torch.int32).flatten()[-1] ^= (
                    1 << 6
                )
            save_file(tensors, file, metadata={"format": "pt"})
            layer = name.rpartition(".")[0].replace(".", r"\.")
            with pytest.raises(FormatError, match=f"{layer}|cannot be reopened"):
                CONTAINERS[format].verify(tmp_path / "out", content, trust_remote_code=False)
    save_file(good, file, metadata={"format": "pt"})
    CONTAINERS[format].verify(tmp_path / "out", content, trust_remote_code=False)


ACTIVATIONS = [
    {"act_bits": 8},
    {"act_bits": 8, "act_sym": True, "kv_bits": 8},
    {"act_bits": 8, "act_scale": "static", "kv_bits": 8, "kv_sym": True},
    {"kv_bits": 4},
]


@pytest.mark.parametrize("activations", ACTIVATIONS, ids=str)
@pytest.mark.parametrize(
    "grid",
    [{"bits": 4, "group_size": -1}, {"bits": 3, "group_size": 32}, {"bits": 8, "group_size": -1, "sym": True},
     {"bits": 8, "group_size": -1}, {"bits": 4, "group_size": -1, "sym": True}],
    ids=str,
)  # fmt: skip
def test_transformers_computes_with_quantized_activations_what_was_tuned(
    grid: dict, activations: dict, llama: Path, tmp_path: Path
) -> None:
    """Weights, inputs of Linears and KV cache by transformers and compressed-tensors alone: the same logits."""
    data = {"nsamples": 4, "seqlen": 32} if "act_scale" in activations else {}
    recipe = roundel.Recipe.create(method="rtn", **grid, **activations, **data)
    result = roundel.quantize(llama, recipe, output=tmp_path / "out", calibration="pydoc" if data else None)
    ids = torch.randint(1000, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = result.model(ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
        ours = roundel.load(tmp_path / "out", packed=False)[0](ids).logits
    assert torch.equal(theirs, wanted)
    assert torch.equal(ours, wanted)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    eight = grid["bits"] == 8 and "act_bits" in activations
    assert config["format"] == ("int-quantized" if eight else "pack-quantized")


def test_scales_that_the_model_does_not_hold_are_refused_with_activations() -> None:
    layer = Layer("model.layers.0.mlp.up_proj", "Linear", (64, 64), Scheme(scale_dtype="float32"))
    activations = Activations(inputs=ActivationScheme(8, sym=False, static=False))
    with pytest.raises(FormatError, match="quantized activations with scales.*leave scale_dtype out"):
        CONTAINERS["compressed-tensors"].check([layer], skeleton(torch.bfloat16), activations, SourceFiles())


def test_a_kv_cache_that_the_client_could_not_read_is_refused_before_the_work(tmp_path: Path) -> None:
    recipe = roundel.Recipe(method="rtn", group_size=32, kv_bits=8)
    with pytest.raises(FormatError, match="OPTConfig has no num_key_value_heads.*--format roundel"):
        roundel.quantize(zoo_model("opt"), recipe, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
