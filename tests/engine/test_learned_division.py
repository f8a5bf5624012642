"""FlexRound, LRQ and activations in the loop, end to end on trained models."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import roundel
from roundel.activations.attach import ActivationQuantizer
from roundel.engine.block import BlockQuantizer, QuantizedBlock
from roundel.errors import FormatError, ModelError

pytestmark = pytest.mark.slow("tunes long enough to compare methods")

SHORT = {
    "nsamples": 32,
    "seqlen": 64,
    "batch_size": 8,
    "iters": 40,
    "holdout": 4,
    "group_size": -1,
    "amp": "float32",
    "format": "roundel",
}
W4A8 = {"bits": 4, "act_bits": 8, "kv_bits": 8}
METHODS = [
    {"method": "flexround"},
    {"method": "lrq"},
    {"method": "flexround", "offsets": True},
    {"method": "lrq", "offsets": True, "rank": 8},
]


def name_of(settings: dict) -> str:
    return "-".join(str(value) for value in settings.values())


def short(**settings: object) -> roundel.Recipe:
    return roundel.Recipe.create(**{**SHORT, **settings})


@pytest.fixture(scope="module")
def searched_kl(folder_kl) -> Callable[[Path, dict], float]:
    """How far searched rounding is from a model: once for all that is compared with it."""
    found: dict[tuple[Path, str], float] = {}

    def measure(model: Path, setting: dict) -> float:
        key = model, name_of(setting)
        if key not in found:
            searched = {name: SHORT[name] for name in ("nsamples", "seqlen", "group_size", "amp")}
            recipe = roundel.Recipe.create(**{**searched, **setting, "method": "rtn", "start": "search"})
            found[key] = folder_kl(roundel.quantize(model, recipe, calibration="pydoc"), model)
        return found[key]

    return measure


def check_against_searched_rounding(
    learned: dict, setting: dict, model: Path, out: Path, folder_kl, searched_kl
) -> None:
    tuned = roundel.quantize(model, short(**learned, **setting), calibration="pydoc", output=out)
    found = folder_kl(out, model)
    assert found == pytest.approx(folder_kl(tuned, model), rel=1e-5)
    assert found < 0.9 * searched_kl(model, setting)
    for block in tuned.manifest["blocks"]:
        assert block["loss_end"] < block["loss_start"]
    share = tuned.manifest["trained_share"]
    assert share > 2 if learned == METHODS[2] else share < 1.6


@pytest.mark.parametrize("learned", METHODS, ids=name_of)
def test_learned_division_beats_searched_rounding(
    learned: dict, any_model: Path, tmp_path: Path, folder_kl, searched_kl
) -> None:
    check_against_searched_rounding(learned, {"bits": 3}, any_model, tmp_path / "out", folder_kl, searched_kl)


@pytest.mark.parametrize("learned", METHODS, ids=name_of)
@pytest.mark.parametrize("setting", [{"bits": 3, "group_size": 32, "sym": True}, W4A8], ids=name_of)
def test_so_it_does_in_groups_and_with_activations(
    learned: dict, setting: dict, llama: Path, tmp_path: Path, folder_kl, searched_kl
) -> None:
    check_against_searched_rounding(learned, setting, llama, tmp_path / "out", folder_kl, searched_kl)


def check_step_size(model: Path, bits: int, iters: int) -> None:
    """The rule's own step size is near the best of a wide range."""
    rule = short(method="flexround", bits=bits).resolved_division_lr(bits, iters)
    ends = {}
    for factor in (0.1, 1.0, 10.0):
        recipe = short(method="flexround", bits=bits, iters=iters, division_lr=rule * factor)
        manifest = roundel.quantize(model, recipe, calibration="pydoc").manifest
        ends[factor] = sum(block["loss_end"] for block in manifest["blocks"])
    assert ends[1.0] < 1.05 * min(ends.values())


def test_one_step_size_fits_all_models(any_model: Path) -> None:
    check_step_size(any_model, bits=3, iters=30)


def test_one_step_size_fits_other_widths_and_lengths(llama: Path) -> None:
    check_step_size(llama, bits=4, iters=120)


@pytest.mark.parametrize("method", ["autoround", "flexround", "lrq"])
@pytest.mark.parametrize(
    "grids",
    [{"act_bits": 8, "kv_bits": 4}, {"act_bits": 6, "act_scale": "static", "kv_bits": 8, "kv_sym": True}],
)
def test_evaluation_computes_what_the_loop_computed_bit_for_bit(
    method: str, grids: dict, llama: Path, tmp_path: Path, monkeypatch
) -> None:
    """The last quantized stream of the run, against the reopened folder on the same tokens."""
    streams = {}
    quantize = BlockQuantizer.quantize

    def spy(worker: BlockQuantizer, *arguments: object) -> QuantizedBlock:
        done = quantize(worker, *arguments)
        streams["last"], streams["tokens"] = done.streams.quantized[:], worker.passes.runner.tokens
        return done

    monkeypatch.setattr(BlockQuantizer, "quantize", spy)
    recipe = short(method=method, bits=4, iters=5, **grids)
    roundel.quantize(llama, recipe, calibration="pydoc", output=tmp_path / "out")
    model, _ = roundel.load(tmp_path / "out", packed=False)
    taken = []
    model.model.layers[-1].register_forward_hook(lambda module, args, output: taken.append(output))
    with torch.no_grad():
        for rows in streams["tokens"].split(recipe.batch_size):
            model(input_ids=rows, use_cache=False)
    found = torch.cat([t[0] if isinstance(t, tuple) else t for t in taken])
    assert torch.equal(found, streams["last"])


def test_tuning_in_the_loop_beats_tuning_without_it(llama: Path, folder_kl, tmp_path: Path) -> None:
    grids = {"act_bits": 4, "kv_bits": 4}
    inside = roundel.quantize(
        llama, short(method="flexround", bits=4, iters=80, **grids), calibration="pydoc"
    )
    outside = roundel.quantize(llama, short(method="flexround", bits=4, iters=80), calibration="pydoc")
    recipe = short(method="flexround", bits=4, **grids)
    quantizer = ActivationQuantizer(outside.model, list(outside.weights), recipe.activations)
    quantizer.enabled = True
    assert folder_kl(inside, llama) < 0.97 * folder_kl(outside, llama)


def test_activations_alone_cost_what_they_cost(llama: Path, folder_kl) -> None:
    """More bits for activations, less divergence; none at all, none."""
    found = []
    for bits in (3, 4, 6, 8):
        recipe = roundel.Recipe(method="rtn", bits=8, group_size=-1, act_bits=bits, kv_bits=bits)
        found.append(folder_kl(roundel.quantize(llama, recipe), llama))
    assert found == sorted(found, reverse=True)
    assert found[0] > 20 * found[-1]


@pytest.mark.parametrize("rule", ["minmax", "percentile", "mse"])
def test_static_ranges_of_every_rule(rule: str, any_model: Path, folder_kl, tmp_path: Path) -> None:
    recipe = short(
        method="flexround", bits=8, act_bits=8, act_scale="static", act_range=rule, smooth=0.5, iters=10
    )
    roundel.quantize(any_model, recipe, calibration="pydoc", output=tmp_path / "out")
    assert folder_kl(tmp_path / "out", any_model) < 0.02
    saved = json.loads((tmp_path / "out" / "roundel_activations.json").read_text())
    assert set(saved["static"]) == set(saved["layers"])


def test_gptq_rounds_for_the_activations_that_it_will_meet(llama: Path, folder_kl) -> None:
    common = {key: SHORT[key] for key in ("nsamples", "seqlen", "batch_size", "group_size", "amp")}
    grids = {"bits": 4, "act_bits": 8, "kv_bits": 8}
    rtn = roundel.quantize(llama, roundel.Recipe(method="rtn", group_size=-1, **grids))
    recipe = roundel.Recipe.create(method="gptq", **common, **grids)
    assert folder_kl(roundel.quantize(llama, recipe, calibration="pydoc"), llama) < 0.8 * folder_kl(
        rtn, llama
    )


def test_tuning_goes_on_from_gptq_and_spqr(llama: Path, folder_kl) -> None:
    for start in ({"start": "gptq"}, {"start": "spqr", "target_bits": 4.2, "group_size": 16, "round_zero": False,
                  "enable_minmax_tuning": False, "scale_bits": 4, "zero_bits": 4, "tile_rows": 32}):  # fmt: skip
        recipe = short(method="flexround", **{"bits": 3, **start})
        before = roundel.quantize(llama, recipe.with_settings(iters=0), calibration="pydoc")
        after = roundel.quantize(llama, recipe, calibration="pydoc")
        assert folder_kl(after, llama) < folder_kl(before, llama)


def test_mixing_inputs_changes_the_training_and_not_the_judgement(llama: Path) -> None:
    plain = roundel.quantize(llama, short(method="flexround", bits=3), calibration="pydoc").manifest["blocks"]
    mixed = roundel.quantize(
        llama, short(method="flexround", bits=3, input_mixing=0.5), calibration="pydoc"
    ).manifest["blocks"]
    # The first block's two streams are one and the same.
    assert mixed[0]["loss_start"] == plain[0]["loss_start"]
    assert mixed[1]["loss_start"] == pytest.approx(plain[1]["loss_start"], rel=0.05)
    assert mixed[1]["curve"] != plain[1]["curve"]
    assert mixed[1]["loss_end"] < mixed[1]["loss_start"]


def test_a_block_that_float16_does_not_hold_is_done_in_float32(llama: Path, load_model, folder_kl) -> None:
    model, tokenizer = load_model(llama)
    mlp = model.model.layers[1].mlp
    with torch.no_grad():
        # The same function, but the input of down_proj exceeds 65504.
        mlp.up_proj.weight *= 2.0**20
        mlp.down_proj.weight *= 2.0**-20
    recipe = short(method="flexround", bits=4, amp="float16", iters=10, scale_dtype="float32")
    said = []
    progress = roundel.Progress()
    progress.say = said.append
    result = roundel.quantize(model, recipe, calibration="pydoc", tokenizer=tokenizer, progress=progress)
    notes = [block["note"] for block in result.manifest["blocks"]]
    assert notes == ["", "done in float32: not finite in float16"]
    assert any("model.layers.1" in line and "again in float32" in line for line in said)
    exact = recipe.with_settings(amp="float32")
    wanted = roundel.quantize(llama, exact, calibration="pydoc")
    assert folder_kl(result, llama) < 1.5 * folder_kl(wanted, llama)


def test_a_cache_that_is_not_filled_is_refused(llama: Path, load_model) -> None:
    model, tokenizer = load_model(llama)
    attention = model.model.layers[1].self_attn
    inner = attention.forward
    attention.forward = lambda *args, **kwargs: inner(*args, **{**kwargs, "past_key_values": None})
    with pytest.raises(
        ModelError, match=r"layers\.1 puts no keys and values into a KV cache.*leave kv_bits out"
    ):
        roundel.quantize(
            model, short(method="lrq", bits=4, kv_bits=8), calibration="pydoc", tokenizer=tokenizer
        )
    # The failed run leaves nothing attached.
    del attention.forward
    assert not model._forward_pre_hooks


def test_a_container_without_activations_says_which_has_them(llama: Path, tmp_path: Path) -> None:
    recipe = roundel.Recipe(method="rtn", bits=3, group_size=16, act_bits=8, format="spqr")
    with pytest.raises(FormatError, match="no quantized activations: use --format roundel"):
        roundel.quantize(llama, recipe, output=tmp_path / "out")


def test_low_memory_gives_the_same_integers(llama: Path) -> None:
    recipe = short(method="lrq", iters=4, **W4A8)
    plain = roundel.quantize(llama, recipe, calibration="pydoc")
    low = roundel.quantize(llama, recipe.with_settings(low_gpu_mem_usage=True), calibration="pydoc")
    assert all(weight.equals(low.weights[name]) for name, weight in plain.weights.items())


def test_the_head_takes_part(llama: Path, tmp_path: Path, folder_kl) -> None:
    recipe = short(method="flexround", bits=8, act_bits=8, act_scale="static", lm_head=True, iters=4)
    result = roundel.quantize(llama, recipe, calibration="pydoc", output=tmp_path / "out")
    layers = {layer["name"]: layer for layer in result.manifest["layers"]}
    assert layers["lm_head"]["inputs"] == "8 bit asym, static"
    assert folder_kl(tmp_path / "out", llama) < 0.02
