"""A limit of time: what it chooses, keeps and refuses."""

import json
import re
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import roundel
from roundel.engine.block import BlockQuantizer
from roundel.engine.trial import Times
from roundel.errors import RecipeError, Stopped
from roundel.recipe import Work
from roundel.recipe.ladder import rungs, step_size
from roundel.workflows import within
from roundel.workflows.costs import Costs
from roundel.workflows.within import choose, parse_limit, work_keys

SETTINGS = {"method": "autoround", "bits": 3, "group_size": 32, "format": "roundel"}
positive = st.floats(1e-3, 10)


def costs(fixed: float = 0.1, batch: float = 0.05, step: float = 0.1, spent: float = 2.0) -> Costs:
    times = Times(
        fixed=fixed,
        batch=batch,
        passes=2,
        step=step,
        blocks=30,
        rows=4,
        minibatch=8,
        tokens=512,
        weights=10**6,
    )
    return Costs(times, spent, lambda work: 0.01 * work.samples, 1.0, 1e3)


@given(positive, positive, positive, st.lists(st.floats(1, 1e6), min_size=2, max_size=6))
@pytest.mark.parametrize("method", ["autoround", "gptq"])
def test_more_time_never_chooses_less_and_no_choice_is_planned_longer(
    method: str, fixed: float, batch: float, step: float, limits: list[float]
) -> None:
    ladder = rungs(learned=roundel.Recipe(method=method).tuned)
    known, before = costs(fixed, batch, step), -1
    for limit in sorted(limits):
        try:
            work = choose(ladder, limit, known)
        except RecipeError:
            assert known.seconds(ladder[0]) > limit
            continue
        assert known.seconds(work) <= limit
        assert ladder.index(work) >= before
        before = ladder.index(work)


@given(positive, positive, positive)
@pytest.mark.parametrize("learned", [True, False])
def test_every_rung_takes_longer_than_the_one_below_with_its_minibatch(
    learned: bool, fixed: float, batch: float, step: float
) -> None:
    ladder, known = rungs(learned=learned), costs(fixed, batch, step)
    for _, of_size in groupby(ladder, lambda work: work.minibatch):
        seconds = [known.seconds(work) for work in of_size]
        assert seconds == sorted(seconds)


def test_a_rung_is_little_more_than_the_one_below() -> None:
    """So that a run takes most of the time that it may take."""
    for lower, higher in pairwise(work for work in rungs(learned=True) if work.iters >= 24):
        assert 1 < higher.iters * higher.minibatch / (lower.iters * lower.minibatch) <= 1.25
        assert lower.samples <= higher.samples <= 1.34 * lower.samples


@given(positive, positive)
def test_an_iteration_of_the_measured_size_takes_what_was_measured(batch: float, step: float) -> None:
    times = costs(batch=batch, step=step).times
    measured = Work(iters=1, minibatch=8, samples=8, seqlen=512)
    assert times.step_of(measured) == step
    half, twice = (times.step_of(replace(measured, minibatch=size)) for size in (4, 16))
    assert 0 < half <= step <= twice
    assert twice - step == pytest.approx(2 * (step - half))
    assert times.step_of(replace(measured, seqlen=256)) == half


def test_no_more_samples_than_there_are() -> None:
    assert {work.samples for work in rungs(learned=True, available=37)} == {24, 32, 37}
    assert {work.samples for work in rungs(learned=True, counted=600)} == {600}
    ladder = rungs(learned=True, available=37)
    assert len(set(ladder)) == len(ladder)
    assert choose(ladder, 1e9, costs()) == ladder[-1]
    assert {work.seqlen for work in rungs(learned=False, reach=300)} == {300}
    assert {work.seqlen for work in rungs(learned=True, reach=300)} == {256}


@pytest.mark.parametrize(
    ("settings", "lr"),
    [
        ({"method": "autoround"}, 0.01),
        ({"method": "signround"}, 0.01),
        ({"method": "autoround", "lr": 0.02}, None),
        ({"method": "autoround", "optimizer": "adamw"}, None),
        ({"method": "flexround"}, None),
        ({"method": "gptq"}, None),
    ],
)
def test_step_sizes_are_chosen_where_they_are_signed_and_not_set(
    settings: dict[str, Any], lr: float | None
) -> None:
    recipe = roundel.Recipe(**settings)
    keys = work_keys(recipe, Work(iters=100, minibatch=2, samples=64, seqlen=256))
    assert keys.get("lr") == lr
    recipe.with_settings(**keys)


@pytest.mark.parametrize(("accumulated", "size", "steps"), [(1, 4, None), (2, 2, 2), (8, 1, 4)])
def test_gradients_are_accumulated_where_the_recipe_does(
    accumulated: int, size: int, steps: int | None
) -> None:
    recipe = roundel.Recipe(gradient_accumulate_steps=accumulated)
    keys = work_keys(recipe, Work(iters=100, minibatch=4, samples=64, seqlen=256))
    assert keys["batch_size"] == size
    assert keys.get("gradient_accumulate_steps") == steps


def test_all_steps_together_move_an_offset_by_a_quarter_of_a_code_at_least_and_one_at_most() -> None:
    assert [step_size(iters, 3) for iters in (25, 50, 100, 200, 1000)] == [0.02, 0.01, 0.01, 0.01, 0.002]
    assert [step_size(iters, 4) for iters in (25, 50, 100, 200, 1000)] == [0.02, 0.01, 0.01, 0.005, 0.001]


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
    keys = {key: chosen[key] for key in ("iters", "nsamples", "seqlen", "batch_size", "lr") if key in chosen}
    assert ("lr" in keys) == (keys["iters"] > 0)
    work = Work(chosen["iters"], chosen["batch_size"], chosen["nsamples"], chosen["seqlen"])
    assert work in rungs(learned=True)
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
    chosen = re.compile(r"Within 10 s: \d+ iterations of [1248] on \d+ samples of 256 tokens, about ")
    assert any(chosen.match(words) for words in heard)
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
