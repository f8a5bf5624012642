"""GPTQ and SpQR through the walk, on trained models."""

from functools import partial
from pathlib import Path

import pytest
import torch

import roundel
from roundel.errors import CalibrationError, RecipeError

pytestmark = pytest.mark.slow("compares methods over four architectures")

SHORT = {"nsamples": 32, "seqlen": 64, "batch_size": 8}
GPTQ = {"method": "gptq", "bits": 3, "group_size": 32, "format": "dense", **SHORT}
SPQR = {"method": "spqr", "bits": 3, **SHORT}


@pytest.fixture(scope="module")
def kl(folder_kl):
    """KL of a result to its original."""
    return partial(folder_kl, limit=16)


def quantize(model: Path, **settings: object) -> roundel.Quantized:
    recipe = roundel.Recipe(**settings)
    return roundel.quantize(model, recipe, calibration="pydoc" if recipe.needs_calibration else None)


def test_each_step_lowers_the_divergence(any_model: Path, kl) -> None:
    rtn = kl(quantize(any_model, method="rtn", bits=3, group_size=32), any_model)
    gptq = kl(quantize(any_model, **GPTQ), any_model)
    spqr = kl(quantize(any_model, **SPQR, target_bits=3.95), any_model)
    assert gptq < 0.7 * rtn
    assert spqr < 0.8 * gptq


def test_four_bits_on_two_levels_halve_the_divergence_of_plain_two_level_rounding(llama: Path, kl) -> None:
    published = {"group_size": 16, "round_zero": False, "scale_bits": 3, "zero_bits": 3}
    rounded = kl(quantize(llama, method="rtn", bits=4, **published, format="roundel"), llama)
    assert kl(quantize(llama, **{**SPQR, "bits": 4, "target_bits": 4.75}), llama) < 0.5 * rounded


def test_knobs_change_the_result(llama: Path) -> None:
    """No option is accepted and ignored."""
    results = {}
    for change in (
        {}, {"damping": 0.3}, {"order": "identity"}, {"order": "act_order"}, {"order": "spearman"},
        {"static_groups": True}, {"true_sequential": True}, {"start": "minmax"}, {"outliers": 0.01},
        {"outliers": 0.01, "simplified_outliers": True}, {"outlier_threshold": 0.3}, {"target_bits": 4.2},
        {"scale_bits": 3}, {"zero_bits": 3}, {"zero_sym": True}, {"tile_rows": 16}, {"seed": 1}, {"nsamples": 31},
        {"seqlen": 63}, {"shuffle": False}, {"round_zero": True, "zero_bits": None}, {"scale_bits": None},
        {"min_tokens": 1000.0}, {"amp": "bfloat16"}, {"group_size": 32}, {"bits": 4},
    ):  # fmt: skip
        result = quantize(llama, **{**SPQR, "amp": "float32", **change})
        results[str(change)] = result.weights["model.layers.1.mlp.down_proj"].dequantize()
    tensors = list(results.items())
    for i, (name, tensor) in enumerate(tensors):
        for other, against in tensors[:i]:
            assert not torch.equal(tensor, against), f"{name} gives the same weights as {other}"


def test_the_same_seed_gives_the_same_bytes(llama: Path, tmp_path: Path) -> None:
    recipe = roundel.Recipe(**SPQR, outliers=0.01)
    for name in ("first", "second"):
        roundel.quantize(llama, recipe, calibration="pydoc", output=tmp_path / name)
    first, second = ((tmp_path / n / "roundel.safetensors").read_bytes() for n in ("first", "second"))
    assert first == second


def test_a_linear_that_saw_too_few_tokens_is_rounded_and_listed(llama: Path) -> None:
    result = quantize(llama, **{**GPTQ, "nsamples": 2, "seqlen": 20, "min_tokens": 0.25})
    layers = {layer["name"]: layer["note"] for layer in result.manifest["layers"]}
    assert layers["model.layers.0.mlp.down_proj"] == "rounded to nearest: saw 40 tokens, 64 expected"
    assert layers["model.layers.0.mlp.up_proj"] == ""


def test_a_linear_that_went_astray_is_rounded_to_nearest_and_listed(llama: Path, monkeypatch) -> None:
    from roundel.engine import target

    honest, calls = target.gptq, []

    def astray(weight: torch.Tensor, *rest: object):
        calls.append(1)
        return honest(weight * 3 if len(calls) == 4 else weight, *rest)

    monkeypatch.setattr(target, "gptq", astray)
    result = quantize(llama, **GPTQ)
    notes = [layer["note"] for layer in result.manifest["layers"] if layer["note"]]
    assert notes == ["rounded to nearest: error feedback diverged"]
    assert all(layer["error"] < 0.1 for layer in result.manifest["layers"] if layer["bits"])


def test_raised_damping_is_listed(llama: Path, load_model, monkeypatch) -> None:
    from roundel.methods import cholesky

    honest = torch.linalg.cholesky_ex

    def fails_at_first(matrix: torch.Tensor, **how: object):
        lower, failed = honest(matrix, **how)
        return lower, failed + int(calls.append(1) or len(calls) == 1)

    calls: list[int] = []
    monkeypatch.setattr(cholesky.torch.linalg, "cholesky_ex", fails_at_first)
    notes = [layer["note"] for layer in quantize(llama, **GPTQ).manifest["layers"] if layer["note"]]
    assert notes == 3 * ["damping raised to 0.1"]  # queries, keys and values share the factor


def test_linears_that_share_their_input_share_one_factorization(llama: Path, monkeypatch) -> None:
    from roundel.methods import cholesky

    honest, calls = cholesky.factorize, []

    def counted(*known):
        calls.append(1)
        return honest(*known)

    monkeypatch.setattr(cholesky, "factorize", counted)
    blocks = len(quantize(llama, **GPTQ).manifest["blocks"])
    assert len(calls) == 4 * blocks  # q, k, v; o; gate, up; down


def test_the_error_of_every_block_is_recorded_on_request(llama: Path) -> None:
    plain = quantize(llama, **GPTQ)
    watched = quantize(llama, **{**GPTQ, "block_loss": True})
    assert all(weight.equals(plain.weights[name]) for name, weight in watched.weights.items())
    assert [block["loss_end"] for block in plain.manifest["blocks"]] == [None, None]
    first, last = (block["loss_end"] for block in watched.manifest["blocks"])
    assert 0 < first < last < 0.5  # errors gather on the way
    finer = quantize(llama, **{**GPTQ, "block_loss": True, "bits": 4}).manifest["blocks"]
    assert finer[1]["loss_end"] < 0.5 * last


def test_the_head_is_rounded_with_its_own_inputs(llama: Path, kl) -> None:
    seen = quantize(llama, **{**GPTQ, "lm_head": True, "min_tokens": 1e6}).manifest["layers"]
    assert {layer["note"].split(",")[0] for layer in seen if layer["bits"]} == {
        "rounded to nearest: saw 2048 tokens"
    }
    result = quantize(llama, **{**GPTQ, "lm_head": True})
    assert "lm_head" in result.weights
    plain = quantize(llama, method="rtn", bits=3, group_size=32, lm_head=True)
    assert kl(result, llama) < 0.8 * kl(plain, llama)


@pytest.mark.parametrize("start", ["gptq", "spqr"])
def test_tuning_starts_from_error_feedback(llama: Path, start: str, kl) -> None:
    grid = {"group_size": 32, "format": "dense"}
    if start == "spqr":
        grid = {
            "group_size": 16, "round_zero": False, "scale_bits": 4, "zero_bits": 4, "outliers": 0.01, "format": "dense",
            "enable_minmax_tuning": False,
        }  # fmt: skip
    tuned = quantize(llama, method="autoround", start=start, bits=2, iters=60, holdout=4, **grid, **SHORT)
    losses = [(block["loss_start"], block["loss_end"]) for block in tuned.manifest["blocks"]]
    assert all(end <= start for start, end in losses)
    assert any(end < 0.95 * start for start, end in losses)
    if start == "spqr":
        assert tuned.manifest["outlier_share"] == pytest.approx(0.01, abs=1e-3)
    grid.pop("enable_minmax_tuning", None)
    start_only = quantize(llama, method=start, bits=2, **grid, **SHORT)
    assert kl(tuned, llama) < kl(start_only, llama)


def test_a_budget_that_cannot_be_kept_is_refused_before_any_work(llama: Path) -> None:
    with pytest.raises(RecipeError, match=r"q_proj takes at least 3\.\d+ bits per weight"):
        roundel.quantize(llama, roundel.Recipe(**SPQR, target_bits=3.1), calibration="no such file")


def test_a_budget_below_the_second_level_takes_a_coarser_one(llama: Path) -> None:
    result = quantize(llama, **{**SPQR, "target_bits": 3.56})
    assert 3.4 < result.manifest["bits_per_weight"] <= 3.56
    assert {w.scheme.scale_bits for w in result.weights.values()} <= {2, 3}


def test_calibration_is_checked_first(llama: Path) -> None:
    with pytest.raises(CalibrationError):
        roundel.quantize(llama, roundel.Recipe(**GPTQ), calibration="no-such-file.txt")


@pytest.mark.parametrize("grid", [{"sym": True}, {"sym": False}, {"group_size": -1}], ids=str)
def test_gptq_is_written_for_other_clients(
    llama: Path, grid: dict, tmp_path: Path, held_out: Path, kl
) -> None:
    recipe = roundel.Recipe(**{**GPTQ, "format": "compressed-tensors", **grid})
    result = roundel.quantize(llama, recipe, calibration="pydoc", output=tmp_path / "out")
    reopened = roundel.evaluate(tmp_path / "out", reference=llama, text=str(held_out), window=64, limit=16)
    assert reopened.texts[0].kl.mean.value == pytest.approx(kl(result, llama), rel=1e-5)
