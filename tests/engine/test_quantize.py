"""End to end on trained models of every architecture."""

import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import roundel
from roundel.errors import FormatError, NonFiniteError, RecipeError
from roundel.system.devices import autocast_dtype, choose_device

pytestmark = pytest.mark.slow("tunes over four architectures")

SHORT = {"nsamples": 32, "seqlen": 64, "batch_size": 8, "iters": 40, "holdout": 4, "group_size": 32}


@pytest.mark.parametrize("sym", [False, True])
def test_autoround_beats_rounding_on_every_architecture(
    any_model: Path, sym: bool, tmp_path: Path, folder_kl
) -> None:
    format = "dense" if any_model.name == "gpt2" else "compressed-tensors"
    common = {"bits": 2, "sym": sym, "format": format}
    rtn = roundel.quantize(any_model, roundel.Recipe(method="rtn", group_size=32, **common))
    tuned = roundel.quantize(
        any_model, roundel.Recipe(**common, **SHORT), calibration="pydoc", output=tmp_path / "out"
    )
    rounded, learned = folder_kl(rtn, any_model), folder_kl(tmp_path / "out", any_model)
    # From the saved folder: what a client gets is what was tuned.
    assert learned == pytest.approx(folder_kl(tuned, any_model), rel=1e-5)
    assert learned < 0.5 * rounded
    for block in tuned.manifest["blocks"]:
        assert block["loss_end"] <= block["loss_start"]


@pytest.mark.parametrize("method", ["signround", "autoround"])
def test_published_settings_beat_rounding(method: str, any_model: Path, folder_kl) -> None:
    published = {"start": "minmax", "keep": "best-minibatch", "loss": "mse"}
    if method == "autoround":
        published["minmax_limit"] = 1.0
    recipe = roundel.Recipe(method=method, bits=3, **SHORT, **published)
    rtn = roundel.quantize(any_model, roundel.Recipe(method="rtn", bits=3, group_size=32))
    tuned = roundel.quantize(any_model, recipe, calibration="pydoc")
    assert folder_kl(tuned, any_model) < folder_kl(rtn, any_model)


def test_a_searched_grid_beats_minmax(llama: Path, folder_kl) -> None:
    searched = roundel.Recipe(method="rtn", start="search", bits=3, group_size=-1, nsamples=16, seqlen=64)
    plain = roundel.Recipe(method="rtn", bits=3, group_size=-1)
    assert folder_kl(roundel.quantize(llama, searched, calibration="pydoc"), llama) < 0.9 * folder_kl(
        roundel.quantize(llama, plain), llama
    )


def test_the_same_seed_gives_the_same_bytes(llama: Path, tmp_path: Path) -> None:
    recipe = roundel.Recipe(bits=3, **{**SHORT, "iters": 8})
    for name in ("first", "second"):
        torch.manual_seed(hash(name) % 1000)  # the global state must not matter
        roundel.quantize(llama, recipe, output=tmp_path / name)
    first, second = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("first", "second"))
    assert first == second
    other = roundel.quantize(llama, recipe.with_settings(seed=1), output=tmp_path / "other")
    assert (other.output / "model.safetensors").read_bytes() != first


def test_a_model_in_memory(llama: Path, load_model) -> None:
    model, tokenizer = load_model(llama)
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    result = roundel.quantize(model, roundel.Recipe(bits=4, **{**SHORT, "iters": 2}), tokenizer=tokenizer)
    assert result.model is model
    assert result.output is None
    name = "model.layers.0.mlp.up_proj"
    assert torch.equal(model.get_submodule(name).weight, result.weights[name].dequantize())
    assert not torch.equal(model.get_submodule(name).weight, before)


def test_overrides_skips_and_the_coverage_table(llama: Path) -> None:
    recipe = roundel.Recipe(
        method="rtn", bits=4, group_size=32, layers={"*.down_proj": {"bits": 8}}, skip=("*.0.self_attn.*",)
    )
    result = roundel.quantize(llama, recipe)
    layers = {layer["name"]: layer for layer in result.manifest["layers"]}
    assert layers["model.layers.0.mlp.down_proj"]["bits"] == 8
    assert layers["model.layers.0.mlp.up_proj"]["bits"] == 4
    assert layers["model.layers.0.self_attn.q_proj"]["bits"] is None
    assert "skip pattern" in layers["model.layers.0.self_attn.q_proj"]["reason"]
    assert "output head" in layers["lm_head"]["reason"]
    assert layers["model.embed_tokens"]["reason"] == "embedding"
    linears = [n for n, m in result.model.named_modules() if isinstance(m, torch.nn.Linear)]
    assert set(linears) <= set(layers)
    assert set(result.weights) == {n for n, layer in layers.items() if layer["bits"]}


def test_what_is_no_linear_is_listed_too(llama: Path, load_model) -> None:
    model, _ = load_model(llama)
    mlp = model.model.layers[1].mlp
    mlp.experts = torch.nn.Parameter(torch.zeros(4, 96, 8))
    mlp.mixer = torch.nn.Conv1d(3, 3, 2)
    layers = roundel.quantize(model, roundel.Recipe(method="rtn", group_size=32)).manifest["layers"]
    found = {layer["name"]: (layer["shape"], layer["reason"]) for layer in layers}
    shape, reason = found["model.layers.1.mlp.experts"]
    assert shape == (4, 96, 8)
    assert reason.startswith("a stack of matrices, and nothing says whether it is [E, out, in]")
    assert found["model.layers.1.mlp.mixer"] == ((3, 3, 2), "no Linear: stays as it is")


def test_a_head_that_is_left_out_cannot_be_asked_for(llama: Path) -> None:
    with pytest.raises(RecipeError, match="lm_head=true wants an output head"):
        roundel.quantize(llama, roundel.Recipe(method="rtn", lm_head=True, skip=("lm_head",)))


@pytest.mark.parametrize("pattern", [{"skip": ("*.experts.*",)}, {"layers": {"*.c_fc": {"bits": 8}}}])
def test_a_pattern_that_matches_nothing_is_an_error(pattern: dict[str, object], llama: Path) -> None:
    with pytest.raises(RecipeError, match="matches no Linear; names look like model.layers.0"):
        roundel.quantize(llama, roundel.Recipe(method="rtn", **pattern))
    with pytest.raises(RecipeError, match="every Linear is left out"):
        roundel.quantize(llama, roundel.Recipe(method="rtn", skip=("*",)))


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "lr": 0.01},
        {"amp": "bfloat16"},
        {"amp": "float16"},
        {"low_gpu_mem_usage": True},
        {"use_quant_input": False},
        {"gradient_accumulate_steps": 2, "batch_size": 4},
        {"lr_schedule": "cosine"},
        {"keep": "best-fixed", "judge_every": 10},
        {"enable_minmax_tuning": False},
    ],
    ids=str,
)
def test_every_knob_still_beats_the_start(changes: dict[str, object], llama: Path) -> None:
    recipe = roundel.Recipe(**{**SHORT, "bits": 2, "iters": 25, **changes})
    blocks = roundel.quantize(llama, recipe, calibration="pydoc").manifest["blocks"]
    assert all(block["loss_end"] < 0.9 * block["loss_start"] for block in blocks)


def test_knobs_change_the_result(llama: Path) -> None:
    """No option is accepted and ignored."""
    base = {**SHORT, "bits": 2, "iters": 12, "amp": "float32"}
    results = {}
    for change in (
        {}, {"lr": 0.04}, {"minmax_lr": 0.04}, {"batch_size": 4}, {"gradient_accumulate_steps": 2},
        {"use_quant_input": False}, {"enable_minmax_tuning": False}, {"optimizer": "adamw"},
        {"lr_schedule": "constant"}, {"nsamples": 31}, {"seqlen": 63}, {"seed": 1}, {"start": "minmax"},
        {"loss": "mse"}, {"shuffle": False},
        {"amp": "bfloat16"}, {"minmax_limit": 1.0}, {"scale_dtype": "bfloat16"},
    ):  # fmt: skip
        result = roundel.quantize(llama, roundel.Recipe(**{**base, **change}), calibration="pydoc")
        assert result.manifest["blocks"][1]["kept"] != "start"
        # The second block: its inputs show whether the quantized stream was used.
        results[str(change)] = result.weights["model.layers.1.mlp.down_proj"].dequantize()
    tensors = list(results.items())
    for i, (name, tensor) in enumerate(tensors):
        for other, against in tensors[:i]:
            assert not torch.equal(tensor, against), f"{name} gives the same integers as {other}"


def test_moving_activations_off_the_device_changes_nothing(llama: Path) -> None:
    recipe = roundel.Recipe(bits=3, **{**SHORT, "iters": 4})
    first = roundel.quantize(llama, recipe, calibration="pydoc").weights
    second = roundel.quantize(
        llama, recipe.with_settings(low_gpu_mem_usage=True), calibration="pydoc"
    ).weights
    assert all(weight.equals(second[name]) for name, weight in first.items())


def test_nan_in_a_weight_names_the_layer(llama: Path, load_model, tmp_path: Path) -> None:
    model, _ = load_model(llama)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(NonFiniteError, match=r"model\.layers\.1\.mlp\.up_proj"):
        roundel.quantize(model, roundel.Recipe(method="rtn", group_size=32), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nan_in_an_activation_names_the_block(llama: Path, load_model) -> None:
    model, tokenizer = load_model(llama)
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[0] = float("inf")
    recipe = roundel.Recipe(bits=4, **SHORT)
    with pytest.raises(NonFiniteError, match=r"model\.layers\.1"):
        roundel.quantize(model, recipe, tokenizer=tokenizer, calibration="pydoc")


def test_calibration_for_a_recipe_that_reads_none_is_an_error(llama: Path) -> None:
    with pytest.raises(RecipeError, match="reads no calibration data"):
        roundel.quantize(llama, "rtn-w4g128", calibration="pydoc")


def test_the_manifest_says_everything(llama: Path, tmp_path: Path) -> None:
    recipe = roundel.Recipe(bits=3, **{**SHORT, "iters": 3})
    roundel.quantize(llama, recipe, calibration="pydoc", output=tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "roundel.json").read_text())
    assert manifest["recipe"]["iters"] == 3
    assert manifest["recipe"]["seed"] == 42
    assert manifest["calibration"]["source"] == "pydoc: Python's reference manual, 32 samples"
    assert manifest["calibration"]["samples"] == 32
    assert len(manifest["original"]["fingerprint"]) == 32
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["bits_per_weight"] == pytest.approx(3 + 19 / 32, rel=1e-3)
    assert manifest["peak_memory_bytes"] > 1e8
    assert [len(block["curve"]) for block in manifest["blocks"]] == [3, 3]


def test_the_output_is_whole(llama: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(llama), None
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(source)
    tokenizer = roundel.load(llama)[1]
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(source)
    roundel.quantize(source, roundel.Recipe(method="rtn", group_size=32), output=tmp_path / "out")
    found = {p.name for p in (tmp_path / "out").iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "roundel.json",
        "tokenizer.json",
    } <= found
    reopened, reread = roundel.load(tmp_path / "out", packed=False)
    assert reread.chat_template == "{{ messages }}"
    assert reopened.generation_config.max_new_tokens == 7
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    from zoo import zoo_model

    roundel.quantize(zoo_model("bloom"), roundel.Recipe(method="rtn", group_size=32), output=tmp_path / "out")
    model, _ = roundel.load(tmp_path / "out", packed=False)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_a_quantized_model_is_not_quantized_again(llama: Path, tmp_path: Path) -> None:
    from roundel.errors import ModelError

    roundel.quantize(llama, roundel.Recipe(method="rtn", group_size=32), output=tmp_path / "out")
    with pytest.raises(ModelError, match="quantized already"):
        roundel.quantize(tmp_path / "out", "rtn-w4g128")


def test_a_written_file_that_differs_is_not_delivered(llama: Path, tmp_path: Path, monkeypatch) -> None:
    from roundel.formats import compressed_tensors

    honest = compressed_tensors.pack
    monkeypatch.setattr(compressed_tensors, "pack", lambda codes, bits: honest(codes, bits) ^ 1)
    with pytest.raises(FormatError, match="differs from the tuned one"):
        roundel.quantize(llama, roundel.Recipe(method="rtn", group_size=32), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(RecipeError, match="device 'tpu9' cannot be used"):
        choose_device("tpu9")
    assert autocast_dtype(torch.device("cpu"), "float16") == torch.float16
    assert autocast_dtype(torch.device("cpu"), "float32") is None
    assert autocast_dtype(torch.device("cpu"), "auto") in (None, torch.bfloat16)


def test_shared_model_of_the_developers(tinystories: Path, held_out: Path) -> None:
    rtn = roundel.quantize(tinystories, roundel.Recipe(method="rtn", bits=2, group_size=64))
    recipe = roundel.Recipe(bits=2, **{**SHORT, "group_size": 64})
    tuned = roundel.quantize(tinystories, recipe, calibration="self")
    figures = [
        roundel.evaluate(
            r.model, tokenizer=r.tokenizer, reference=tinystories, text=str(held_out), window=64, limit=12
        )
        .texts[0]
        .kl.mean.value
        for r in (rtn, tuned)
    ]
    assert figures[1] < 0.6 * figures[0]


def test_quantizing_a_copy_leaves_the_original(llama: Path, load_model) -> None:
    model, _ = load_model(llama)
    kept = copy.deepcopy(model.state_dict())
    roundel.quantize(copy.deepcopy(model), roundel.Recipe(method="rtn", group_size=32))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
