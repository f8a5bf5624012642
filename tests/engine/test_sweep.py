"""Several recipes at once: every result has the bytes of a run alone, and what is common is computed once."""

from functools import partial
from pathlib import Path

import pytest
from test_resume import StopAfter, contents, quantize

import roundel
from roundel.calibration import gather
from roundel.engine.block_pass import BlockPass
from roundel.engine.observations import Observer
from roundel.engine.observers import InputHessians
from roundel.engine.plan import plan_together
from roundel.errors import OutputError, RecipeError, Stopped

pytestmark = pytest.mark.slow("does every recipe alone and in lockstep")

DATA = {"nsamples": 10, "seqlen": 40, "batch_size": 4, "calibration": "pydoc"}
TUNING = {"iters": 6, "holdout": 2, **DATA}
RECIPES = {
    "rtn": {"method": "rtn", "group_size": 32},
    "search": {"method": "rtn", "start": "search", "bits": 3, **DATA},
    "gptq": {"method": "gptq", "bits": 3, **DATA},
    "auto": {"bits": 3, **TUNING},
    "lrq": {"method": "lrq", "input_mixing": 0.5, "lm_head": True, **TUNING},
    "sign": {"method": "signround", **TUNING},
    "smooth": {"act_bits": 8, "smooth": 0.5, "kv_bits": 8, **TUNING},
    "other data": {"method": "flexround", **TUNING, "nsamples": 7},
    "guided": {"method": "gptq", "use_quant_input": False, **DATA},
    "guided in turn": {"method": "gptq", "use_quant_input": False, "true_sequential": True, **DATA},
    "guided spqr": {"method": "spqr", "bits": 3, "outliers": 0.01, "use_quant_input": False, **DATA},
}

sweep = partial(roundel.sweep, held_out=None)


def recipes(*names: str) -> list[roundel.Recipe]:
    return [roundel.Recipe(**{"format": "roundel", "name": name, **RECIPES[name]}) for name in names]


@pytest.fixture(scope="module")
def alone(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    for recipe in recipes(*RECIPES):
        quantize(llama, recipe, output=folder / recipe.name.replace(" ", "-"), stream=True)
    return folder


@pytest.mark.parametrize("files", [False, True])
def test_the_bytes_of_runs_alone(files: bool, llama: Path, alone: Path, tmp_path: Path) -> None:
    options = roundel.StreamOptions(on_disk=True) if files else roundel.StreamOptions()
    manifests = sweep(llama, recipes(*RECIPES), tmp_path / "all", streams=options)
    assert list(manifests) == [name.replace(" ", "-") for name in RECIPES]
    for name, manifest in manifests.items():
        assert contents(tmp_path / "all" / name) == contents(alone / name), name
        assert manifest["recipe"]["name"].replace(" ", "-") == name
    assert {path.name for path in (tmp_path / "all").iterdir()} == set(manifests)


def test_what_is_common_is_computed_once(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"data": 0, "reference": 0, "outputs": 0, "hessians": 0}

    def counted(owner: object, name: str, key: str) -> None:
        original = getattr(owner, name)

        def count(*args: object, **kwargs: object) -> object:
            if key != "outputs" or args[1] == "original":
                calls[key] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, count)

    counted(gather, "read_documents", "data")
    counted(Observer, "prepared_reference", "reference")
    counted(BlockPass, "outputs", "outputs")
    counted(InputHessians, "reduce", "hessians")
    names = ("search", "auto", "sign", "guided", "guided spqr")
    sweep(llama, recipes(*names), tmp_path / "all")
    # Two blocks, each seen once for all five.
    assert calls == {"data": 1, "reference": 2, "outputs": 2, "hessians": 2}


def test_an_interrupted_sweep_goes_on(llama: Path, alone: Path, tmp_path: Path) -> None:
    names = ("gptq", "auto", "sign", "guided")
    stops = 0
    for patience in range(8, 10_000, 9):
        try:
            sweep(llama, recipes(*names), tmp_path / "all", progress=StopAfter(patience))
            break
        except Stopped:
            stops += 1
    assert stops > 2
    for name in names:
        assert contents(tmp_path / "all" / name) == contents(alone / name), name
    assert {path.name for path in (tmp_path / "all").iterdir()} == set(names)


def test_what_is_there_already_is_not_done_again(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "all"
    sweep(llama, recipes("rtn", "gptq"), out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    manifests = sweep(llama, recipes("gptq", "search", "rtn"), out)
    assert list(manifests) == ["gptq", "search", "rtn"]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    changed = [recipe.with_settings(bits=5, name="rtn") for recipe in recipes("rtn")]
    with pytest.raises(OutputError, match="result of another recipe"):
        sweep(llama, changed, out)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert sweep(llama, changed, out, overwrite=True)["rtn"]["recipe"]["bits"] == 5


def test_names_that_would_meet(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="guided-spqr is given twice"):
        sweep(llama, [r.with_settings(name="guided-spqr") for r in recipes("rtn", "auto")], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_a_shared_stream_counts_once(llama: Path, tmp_path: Path) -> None:
    chosen = recipes("auto", "lrq", "sign", "gptq", "other data")
    plans = [roundel.plan(llama, recipe, output=tmp_path / "x", trial=False)[0] for recipe in chosen]
    together = plan_together(plans, chosen)
    stream, other = plans[0].stream, plans[4].stream
    assert other < stream
    # Between blocks: both originals, and what four recipes made of them; inside: the outputs of one recipe.
    assert together.memory["streams of activations"] == stream + other + 3 * stream + other + 2 * stream
    assert together.output == sum(plan.output for plan in plans)
    # Of a model this small, writing and measuring takes more than quantizing; it is done for one after another.
    assert together.checking == max(plan.checking for plan in plans)
    running = [sum(plan.memory.values()) for plan in plans]
    assert max(running) < sum(together.memory.values()) < sum(running)
