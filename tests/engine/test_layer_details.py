"""What the report is given every layer: seen from the weights, and from hooks on passes of the whole model.

Which stream the inputs belong to: recipes that run the unquantized model (a searched grid, learned methods) tell of
its inputs; GPTQ and SpQR, which never run it, of what the blocks quantized so far make of the data.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_resume import StopAfter
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import roundel
from processes import run_on_ranks
from roundel.engine import walk
from roundel.errors import Stopped
from roundel.system.ranks import destroy_ranks, init_ranks
from roundel.workflows.run import Run
from zoo import zoo_model

pytestmark = pytest.mark.slow("does runs alone, on ranks and interrupted")

SAMPLES, LENGTH, VOCABULARY = 12, 40, 512
DATA = {"nsamples": SAMPLES, "seqlen": LENGTH, "batch_size": 5, "amp": "float32"}
RECIPES = {
    "rtn": {"method": "rtn", "group_size": 32},
    "search": {"method": "rtn", "start": "search", "group_size": 32, **DATA},
    "gptq": {"method": "gptq", "bits": 3, "group_size": 32, **DATA},
    "gptq on unquantized inputs": {"method": "gptq", "use_quant_input": False, "group_size": 32, **DATA},
    "spqr": {"method": "spqr", "bits": 3, "group_size": 16, "outliers": 0.01, "order": "act_order", **DATA},
    "spqr, head": {"method": "spqr", "bits": 3, "group_size": 16, "outliers": 0.01, "lm_head": True, **DATA},
    "autoround": {"bits": 3, "group_size": 32, "iters": 5, "holdout": 2, **DATA},
    "lrq": {"method": "lrq", "iters": 5, "holdout": 2, "act_bits": 8, "smooth": 0.5, "group_size": 32, **DATA},
    "smoothed": {"method": "rtn", "act_bits": 8, "smooth": 0.5, "group_size": 32, **DATA},
}  # fmt: skip


def tokens() -> torch.Tensor:
    return torch.randint(5, VOCABULARY, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(0))


class Collected(list):
    """The details of every run that finished, as they are after a way through JSON."""


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Collected:
    return collect(monkeypatch.setattr)


def collect(set_attribute) -> Collected:
    found, finish = Collected(), Run.finish

    def collecting(run, job, outcome, plan):
        found.append(json.loads(json.dumps(outcome.details())))
        return finish(run, job, outcome, plan)

    set_attribute(Run, "finish", collecting)
    return found


def quantize(model: Path, recipe: dict, **more: object) -> roundel.Quantized:
    chosen = roundel.Recipe(format="roundel", **recipe)
    data = tokens() if chosen.needs_calibration else None
    return roundel.quantize(model, chosen, calibration=data, held_out=None, **more)


def matrices(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of Linears, `[out, in]`, and of stacked experts each by itself."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D):
            found[name] = module.weight.detach().t() if isinstance(module, Conv1D) else module.weight.detach()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 3:
            found |= {f"{name}.{index}": matrix for index, matrix in enumerate(parameter.detach())}
    return found


@torch.no_grad()
def largest_inputs(model: torch.nn.Module, names: set[str]) -> dict[str, np.ndarray]:
    """max|x| of each channel, from one pass of the whole model over all tokens."""
    found: dict[str, np.ndarray] = {}

    def see(name: str):
        def hook(module, args):
            sizes = args[0].abs().reshape(-1, args[0].shape[-1]).numpy().max(0)
            found[name] = np.maximum(found.get(name, 0), sizes)

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(see(name)) for name in names]
    model(input_ids=tokens())
    for hook in hooks:
        hook.remove()
    return found


def check_inputs(told: dict, sizes: np.ndarray, rel: float = 1e-4) -> None:
    assert told["largest"] == pytest.approx(sizes.max(), rel=rel)
    assert told["median"] == pytest.approx(np.median(sizes), rel=rel)
    assert [value for _, value in told["top"]] == pytest.approx(sorted(sizes, reverse=True)[:8], rel=rel)
    assert [value for _, value in told["top"]] == pytest.approx([sizes[c] for c, _ in told["top"]], rel=rel)


def check_weight(told: dict, weight: torch.Tensor) -> None:
    w = weight.double().numpy()
    apart = (w - w.mean()) / w.std()
    assert told["std"] == pytest.approx(w.std(), rel=1e-4)
    assert told["largest"] == pytest.approx(np.abs(w).max() / w.std(), rel=1e-4)
    assert told["kurtosis"] == pytest.approx((apart**4).mean(), rel=1e-4)
    assert told["beyond_6_std"] == (np.abs(apart) > 6).mean()


@pytest.mark.parametrize("stream", [False, True])
def test_the_weight_before_it_was_quantized(
    stream: bool, any_model: Path, collected: Collected, tmp_path: Path
) -> None:
    more = {"output": tmp_path / "out", "stream": True} if stream else {}
    quantize(any_model, RECIPES["rtn"], **more)
    weights = matrices(AutoModelForCausalLM.from_pretrained(any_model))
    assert len(collected[0]) >= 8
    for name, told in collected[0].items():
        check_weight(told["weight"], weights[name])
        assert told["inputs"] is None
        assert told["outliers"] is None


@pytest.mark.parametrize("recipe", ["search", "autoround", "gptq on unquantized inputs"])
def test_inputs_of_the_unquantized_model(recipe: str, any_model: Path, collected: Collected) -> None:
    quantize(any_model, RECIPES[recipe])
    expected = largest_inputs(AutoModelForCausalLM.from_pretrained(any_model), set(collected[0]))
    for name, told in collected[0].items():
        check_inputs(told["inputs"], expected[name])


def test_inputs_behind_quantized_blocks(any_model: Path, collected: Collected) -> None:
    """GPTQ: the blocks before are quantized, the block itself is not yet."""
    done = quantize(any_model, RECIPES["gptq"])
    model = AutoModelForCausalLM.from_pretrained(any_model)
    blocks = {layer["name"]: layer["block"] for layer in done.manifest["layers"]}
    assert set(blocks.values()) >= {0, 1}
    changed = 0
    for index in sorted({blocks[name] for name in collected[0]}):
        names = {name for name in collected[0] if blocks[name] == index}
        before = largest_inputs(AutoModelForCausalLM.from_pretrained(any_model), names)
        for name, sizes in largest_inputs(model, names).items():
            check_inputs(collected[0][name]["inputs"], sizes)
            changed += not np.allclose(sizes, before[name], rtol=1e-3)
        for name in names:
            module = model.get_submodule(name)
            module.weight.data.copy_(done.model.get_submodule(name).weight)
    assert changed  # else any stream would have passed


def test_inputs_of_experts(collected: Collected) -> None:
    """Each saw its own tokens: computed from what the router sends where."""
    folder = zoo_model("qwen3_moe")
    quantize(folder, RECIPES["search"])
    model, routed = AutoModelForCausalLM.from_pretrained(folder), {}

    def see(name: str):
        def hook(module, args):
            hidden, chosen = args[0].detach(), args[1]
            for expert in range(module.num_experts):
                mine = hidden[(chosen == expert).any(-1)]
                if len(mine):
                    routed[f"{name}.gate_up_proj.{expert}"] = mine.abs().numpy().max(0)
                    gate, up = (mine @ module.gate_up_proj[expert].t()).chunk(2, -1)
                    middle = (module.act_fn(gate) * up).detach()
                    routed[f"{name}.down_proj.{expert}"] = middle.abs().numpy().max(0)

        return hook

    for name, module in model.named_modules():
        if hasattr(module, "num_experts") and hasattr(module, "down_proj"):
            module.register_forward_pre_hook(see(name))
    with torch.no_grad():
        model(input_ids=tokens())
    weights = matrices(model)
    experts = {name: told for name, told in collected[0].items() if ".experts." in name}
    assert len(experts) > 8
    assert len(experts) >= len(routed)
    for name, told in experts.items():
        check_weight(told["weight"], weights[name])
        if name in routed:
            check_inputs(told["inputs"], routed[name])
        else:
            assert told["inputs"] is None


def test_smoothed_weights_and_inputs_are_told_as_they_were_rounded(llama: Path, collected: Collected) -> None:
    """The product of a channel's size of inputs and of weights is what smoothing leaves as it is."""
    plain, smoothed = RECIPES["search"], {**RECIPES["search"], "act_bits": 8, "smooth": 0.5}
    for recipe in (plain, smoothed):
        quantize(llama, recipe)
    before, after = collected
    name = "model.layers.1.mlp.up_proj"
    assert after[name]["inputs"]["largest"] < 0.9 * before[name]["inputs"]["largest"]
    assert after[name]["weight"]["std"] != pytest.approx(before[name]["weight"]["std"], rel=1e-2)
    other = "model.layers.1.mlp.down_proj"  # no norm before it
    assert after[other]["weight"] == before[other]["weight"]


@pytest.mark.parametrize("recipe", ["spqr", "spqr, head"])
def test_where_the_outliers_are(recipe: str, llama: Path, collected: Collected) -> None:
    done = quantize(llama, RECIPES[recipe])
    config = AutoModelForCausalLM.from_pretrained(llama).config
    assert any(weight.order is not None for weight in done.weights.values()) == (recipe == "spqr")
    assert ("lm_head" in collected[0]) == (recipe == "spqr, head")
    for name, told in collected[0].items():
        weight, told = done.weights[name], told["outliers"]
        rows, columns = (weight.dequantize() != replace(weight, outliers=None).dequantize()).numpy().nonzero()
        out, width = told["shape"]
        assert (out, width) == weight.shape
        assert told["count"] == len(rows) > 0
        high, wide = len(told["map"]), len(told["map"][0])
        assert (high, wide) == (min(32, out), min(48, width))
        bins = np.zeros((high, wide), int)
        for row, column in zip(rows, columns, strict=True):
            bins[row * high // out, column * wide // width] += 1
        assert told["map"] == bins.tolist()
        for key, places, size in (("columns", columns, width), ("rows", rows, out)):
            counts = np.bincount(places, minlength=size)
            top = [count for _, count in told[f"top_{key}"]]
            assert top == [int(count) for count in sorted(counts, reverse=True)[:8] if count]
            assert all(counts[place] == count for place, count in told[f"top_{key}"])
            fullest = sorted(counts, reverse=True)[: int(np.ceil(size / 100))]
            assert told[f"in_top_{key}"] == sum(fullest) / len(rows)
        head = config.hidden_size // config.num_attention_heads
        if name.endswith(("q_proj", "k_proj", "v_proj")):
            assert told["heads"] == np.bincount(rows // head, minlength=out // head).tolist()
        elif name.endswith("o_proj"):
            assert told["heads"] == np.bincount(columns // head, minlength=width // head).tolist()
        else:
            assert told["heads"] is None


def test_heads_of_a_fused_attention(gpt2: Path, collected: Collected) -> None:
    done = quantize(gpt2, RECIPES["spqr"])
    for name, told in collected[0].items():
        heads = told["outliers"]["heads"]
        if name.endswith("attn.c_proj"):
            assert len(heads) == done.model.config.n_head
            assert sum(heads) == told["outliers"]["count"]
        else:
            assert heads is None


@pytest.mark.parametrize("recipe", ["spqr, head", "search"])
def test_the_head_with_its_own_inputs(recipe: str, llama: Path, collected: Collected) -> None:
    done = quantize(llama, {**RECIPES[recipe], "lm_head": True})
    model = AutoModelForCausalLM.from_pretrained(llama)
    check_weight(collected[0]["lm_head"]["weight"], model.lm_head.weight.detach())
    for name, weight in done.weights.items():
        if recipe != "search" and name != "lm_head":
            model.get_submodule(name).weight.data.copy_(weight.dequantize())
    check_inputs(collected[0]["lm_head"]["inputs"], largest_inputs(model, {"lm_head"})["lm_head"])


@pytest.mark.parametrize("recipe", RECIPES)
def test_resumed_is_uninterrupted(recipe: str, llama: Path, collected: Collected, tmp_path: Path) -> None:
    straight = quantize(llama, RECIPES[recipe], output=tmp_path / "straight", stream=True).manifest
    step, interruptions = (1 if "rtn" in recipe else 3), 0
    for patience in range(1, 200):
        stopper = StopAfter(patience * step)
        try:
            resumed = quantize(
                llama, RECIPES[recipe], output=tmp_path / "out", stream=True, progress=stopper
            ).manifest
            break
        except Stopped:
            interruptions += 1
    assert interruptions > 1
    assert len(collected) == 2
    assert collected[0] == collected[1]
    assert resumed["layers"] == straight["layers"]


def test_what_is_done_again_in_float32_is_told_anew(llama: Path, collected: Collected) -> None:
    """Finite, though float16 met infinity; and the same as if it had been done so from the start."""
    for amp in ("float16", "float32"):
        model = AutoModelForCausalLM.from_pretrained(llama)
        with torch.no_grad():  # the same function, but the input of down_proj exceeds 65504
            model.model.layers[1].mlp.up_proj.weight *= 2.0**20
            model.model.layers[1].mlp.down_proj.weight *= 2.0**-20
        recipe = {**RECIPES["autoround"], "amp": amp, "scale_dtype": "float32"}
        notes = [block["note"] for block in quantize(model, recipe).manifest["blocks"]]
        assert notes[0] == ""
        assert bool(notes[1]) == (amp == "float16")
    half, full = collected
    assert full["model.layers.1.mlp.down_proj"]["inputs"]["largest"] > 65504
    for name in full:
        assert half[name]["weight"] == full[name]["weight"]
        assert half[name]["inputs"]["largest"] == pytest.approx(full[name]["inputs"]["largest"], rel=0.02)


def test_a_sweep_tells_what_runs_alone_tell(llama: Path, collected: Collected, tmp_path: Path) -> None:
    names = ["search", "gptq on unquantized inputs", "autoround", "spqr", "smoothed"]
    for name in names:
        quantize(llama, RECIPES[name], output=tmp_path / "alone" / name)
    alone = {name: collected.pop(0) for name in names}
    chosen = [roundel.Recipe(format="roundel", name=name, **RECIPES[name]) for name in names]
    roundel.sweep(llama, chosen, tmp_path / "all", calibration=tokens(), held_out=None)
    assert dict(zip(names, collected, strict=True)) == alone


def test_the_manifest_stays_slim(llama: Path, tmp_path: Path) -> None:
    quantize(llama, RECIPES["spqr"], output=tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "roundel.json").read_text())
    assert not any("details" in layer for layer in manifest["layers"])


def test_a_block_keeps_the_peak_of_the_process_that_did_it(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walk, "part_peak", lambda: 111)
    with pytest.raises(Stopped):
        quantize(llama, RECIPES["autoround"], output=tmp_path / "out", progress=StopAfter(20))
    assert (tmp_path / ".out.roundel" / "piece-00000.safetensors").is_file()
    monkeypatch.setattr(walk, "part_peak", lambda: 222)
    done = quantize(llama, RECIPES["autoround"], output=tmp_path / "out")
    assert [block["peak_bytes"] for block in done.manifest["blocks"]] == [111, 222]


def test_peaks_of_blocks_are_within_that_of_the_run(llama: Path, tmp_path: Path) -> None:
    manifest = quantize(llama, RECIPES["gptq"], output=tmp_path / "out", stream=True).manifest
    for block in manifest["blocks"]:
        assert 5e7 < block["peak_bytes"] <= manifest["peak_memory_bytes"]


RANKED = ("rtn", "search", "gptq", "gptq on unquantized inputs", "spqr, head", "autoround", "smoothed")


def test_two_ranks_are_one(tmp_path: Path) -> None:
    """Inputs: the largest of all ranks. Outliers too, where no sum over ranks decides them."""
    found = {}
    for size in (1, 2):
        out = tmp_path / str(size)
        run_on_ranks(size, tmp_path / "said", tell_details, zoo_model("qwen3_moe"), out)
        found[size] = [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(size)]
    assert found[2][0] == found[2][1]
    for name, one, two in zip(RANKED, found[1][0], found[2][0], strict=True):
        assert one.keys() == two.keys()
        for layer, told in one.items():
            assert two[layer]["weight"] == pytest.approx(told["weight"], rel=1e-6)
            assert (two[layer]["inputs"] is None) == (told["inputs"] is None)
            if told["inputs"] is not None:
                # Behind blocks that were rounded by sums in another order, inputs differ, and more where a router
                # sends a token to another expert.
                near = 0.5 if name in ("gptq", "spqr, head") else 1e-5
                for figure in ("largest", "median"):
                    assert two[layer]["inputs"][figure] == pytest.approx(told["inputs"][figure], rel=near)


def tell_details(model: Path, out: Path) -> None:
    """A rank: all recipes one after the other."""
    torch.set_num_threads(1)
    found = collect(setattr)
    out.mkdir(exist_ok=True)
    for name in RANKED:
        recipe = {key: value for key, value in RECIPES[name].items() if key != "lm_head"}
        quantize(model, recipe, output=out / name.replace(" ", "-"))
    (out / f"rank-{init_ranks().number}.json").write_text(json.dumps(found))
    destroy_ranks()
