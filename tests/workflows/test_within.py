"""A limit of time: what it chooses, keeps and refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import roundel
from roundel.engine.block import BlockQuantizer
from roundel.engine.trial import Times
from roundel.errors import RecipeError, Stopped
from roundel.recipe.ladder import rungs
from roundel.workflows import within
from roundel.workflows.costs import Costs
from roundel.workflows.within import choose, parse_limit

SETTINGS = {"method": "autoround", "bits": 3, "group_size": 32, "format": "roundel"}
positive = st.floats(1e-3, 10)


def costs(
    fixed: float = 0.1, batch: float = 0.05, step: float = 0.1, spent: float = 2.0, **more: int
) -> Costs:
    times = Times(fixed=fixed, batch=batch, passes=2, step=step, blocks=30, rows=4, tokens=512, weights=10**6)
    return Costs(times, spent, lambda samples: 0.01 * samples, 1.0, 1e6, **more)


@given(positive, positive, positive, st.lists(st.floats(1, 1e6), min_size=2, max_size=6))
@pytest.mark.parametrize("method", ["autoround", "gptq"])
def test_more_time_never_chooses_less_and_no_choice_is_planned_longer(
    method: str, fixed: float, batch: float, step: float, limits: list[float]
) -> None:
    recipe, known, before = roundel.Recipe(method=method), costs(fixed, batch, step), (-1, -1)
    least = rungs(learned=recipe.tuned)[0]
    for limit in sorted(limits):
        try:
            keys, seconds = choose(recipe, limit, known)
        except RecipeError:
            assert known.seconds(least.samples, least.iters) > limit
            continue
        assert seconds <= limit
        assert seconds == known.seconds(keys["nsamples"], keys.get("iters", 0))
        assert ("iters" in keys) == recipe.tuned
        found = keys.get("iters", 0), keys["nsamples"]
        assert found >= before
        before = found


def test_no_more_samples_than_there_are() -> None:
    keys, _ = choose(roundel.Recipe(), 1e9, costs(available=37))
    assert keys == {"iters": 1000, "nsamples": 37}
    keys, _ = choose(roundel.Recipe(), 1e9, costs(counted=600))
    assert keys == {"iters": 1000, "nsamples": 600}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("20m", 1200),
        ("20min", 1200),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        (45, 45),
    ],
)
def test_times(text: str | float, seconds: float) -> None:
    assert parse_limit(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "soon", "20", "0m", "-5m", "5m!", "m", -3, 0, float("nan"), float("inf"), True]
)
def test_no_times(text: str | float) -> None:
    with pytest.raises(RecipeError, match="20m, 1.5h or 1h30m are expected"):
        parse_limit(text)


def test_the_run_is_that_of_the_keys_that_were_chosen(llama: Path, tmp_path: Path) -> None:
    recipe = roundel.Recipe(**SETTINGS)
    chosen = roundel.quantize(
        llama,
        recipe,
        calibration="pydoc",
        output=tmp_path / "limited",
        within="6s",
        held_out=None,
        stream=True,
    ).manifest["recipe"]
    assert chosen["name"] == "custom (within 6.0 s)"
    keys = {key: chosen[key] for key in ("iters", "nsamples", "seqlen", "batch_size")}
    assert (keys["iters"], keys["nsamples"]) in [(rung.iters, rung.samples) for rung in rungs(learned=True)]
    roundel.quantize(
        llama,
        recipe.with_settings(**keys),
        calibration="pydoc",
        output=tmp_path / "plain",
        held_out=None,
        stream=True,
    )
    one, other = ((tmp_path / name / "roundel.safetensors").read_bytes() for name in ("limited", "plain"))
    assert one == other


@pytest.mark.parametrize("stream", [True, False])
def test_a_run_that_goes_on_keeps_what_it_chose(
    stream: bool, llama: Path, tmp_path: Path, monkeypatch
) -> None:
    recipe, out = roundel.Recipe(**SETTINGS), tmp_path / "out"
    how = {"calibration": "pydoc", "output": out, "within": 6, "held_out": None, "stream": stream}

    class Ends(roundel.Progress):
        """After the first block."""

        def advance(self, steps: int = 1, note: str = "") -> None:
            if not note.startswith("loss"):
                self.stop_asked = steps > 0

    with pytest.raises(Stopped):
        roundel.quantize(llama, recipe, progress=Ends(), **how)
    kept = json.loads((tmp_path / ".out.roundel" / "choice.json").read_text())["chosen"]["keys"]

    def measured(*_: object) -> Costs:
        raise AssertionError("it is measured again")

    monkeypatch.setattr(within, "measure_costs", measured)
    done = roundel.quantize(llama, recipe, **how).manifest["recipe"]
    assert {key: done[key] for key in kept} == kept


def test_a_model_in_memory_is_tried_and_left_as_it_was(llama: Path, load_model) -> None:
    model, tokenizer = load_model(llama)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    heard: list[str] = []

    class Hears(roundel.Progress):
        def say(self, text: str) -> None:
            heard.append(text)

    _, tried = roundel.plan(
        model, roundel.Recipe(**SETTINGS), calibration="pydoc", tokenizer=tokenizer,
        within="10s", progress=Hears(),
    )  # fmt: skip
    assert tried is not None
    assert any(words.startswith("Within 10 s: ") and "iterations of 2 on" in words for words in heard)
    for name, tensor in model.state_dict().items():
        assert tensor.equal(before[name]), name


def test_a_plan_tries_one_block_once(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried, quantize = [], BlockQuantizer.quantize

    def count(worker: BlockQuantizer, index: int, *more: Any) -> Any:
        tried.append(index)
        return quantize(worker, index, *more)

    monkeypatch.setattr(BlockQuantizer, "quantize", count)
    plan, trial = roundel.plan(llama, roundel.Recipe(**SETTINGS), calibration="pydoc", within="1m")
    assert tried == [0]
    assert trial is not None
    assert trial.seconds > 0
    assert trial.peak >= plan.outside


def test_a_model_that_writes_its_own_text(llama: Path) -> None:
    keys = roundel.quantize(llama, roundel.Recipe(**SETTINGS), within="6s").manifest["recipe"]
    assert keys["seqlen"] <= 512


def test_sources_that_say_how_many_samples_they_give(llama: Path, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("The statement is executed when the block is left. " * 2000)
    recipe, source = roundel.Recipe(**SETTINGS), f"{tmp_path}/a.txt:9,{tmp_path}/b.txt:4"
    chosen = roundel.quantize(llama, recipe, calibration=source, within="6s").manifest["recipe"]
    assert chosen["nsamples"] == 13
    assert chosen["iters"] > 0


def test_a_recipe_without_data_has_a_time_too(llama: Path) -> None:
    _, tried = roundel.plan(llama, roundel.Recipe(method="rtn", bits=4, group_size=32))
    assert tried is not None
    assert 0 < tried.block_seconds < tried.seconds


def test_too_little(llama: Path) -> None:
    with pytest.raises(RecipeError, match=r"too little: the least that can be done takes about .* here"):
        roundel.quantize(llama, roundel.Recipe(**SETTINGS), calibration="pydoc", within="0.01s")
