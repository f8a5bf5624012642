"""What is timed is decoding as transformers does it, in turns, and the figures are sums of what was timed."""

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import roundel
from roundel.errors import ModelError, NonFiniteError, RecipeError
from roundel.workflows.bench import turns
from roundel.workflows.bench.asking import Worker
from roundel.workflows.bench.options import BenchOptions
from roundel.workflows.bench.under_test import ModelUnderTest, Opening
from workflows.callers import opened
from zoo import zoo_model

SMALL = {"prompt": 24, "context": 9, "new": 5}


def under_test(folder: Path, **more: Any) -> ModelUnderTest:
    return ModelUnderTest(
        Opening(**{**SMALL, "path": str(folder), "trust_remote_code": False, "allow_pickle": False, **more})
    )


def inputs_of(tested: ModelUnderTest, work: str) -> list[list[int]]:
    """The tokens of every forward pass of a job."""
    seen: list[list[int]] = []
    hook = tested._model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    getattr(tested, work)()
    hook.remove()
    return seen


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "mamba2"])
def test_the_tokens_are_those_that_transformers_makes(name: str) -> None:
    tested = under_test(zoo_model(name))
    prompt, *new = inputs_of(tested, "decode")
    assert len(prompt) == 9
    assert [len(ids) for ids in new] == [1] * 5
    model = AutoModelForCausalLM.from_pretrained(zoo_model(name))
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        wanted = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=5)
    assert prompt + [ids[0] for ids in new] == wanted[0].tolist()
    assert [len(ids) for ids in inputs_of(tested, "prefill")] == [24]


def test_prompts_are_the_same_every_time_and_hold_no_special_token(llama: Path) -> None:
    prompts = [inputs_of(under_test(llama, prompt=400), "prefill")[0] for _ in range(2)]
    assert prompts[0] == prompts[1]
    assert len(set(prompts[0])) > 200
    tokenizer = AutoTokenizer.from_pretrained(llama)
    assert not set(prompts[0]) & set(tokenizer.all_special_ids)
    assert max(prompts[0]) < AutoModelForCausalLM.from_pretrained(llama).config.vocab_size


def test_the_end_of_a_text_ends_nothing(llama: Path, tmp_path: Path) -> None:
    model = opened("llama")
    assert model.config.eos_token_id == 0
    model.lm_head.weight.data.zero_()  # every token is equally likely, the first of all, which ends texts, is taken
    model.save_pretrained(tmp_path)
    assert inputs_of(under_test(tmp_path), "decode")[1:] == [[0]] * 5


def test_what_is_known_of_a_model(llama: Path) -> None:
    before = psutil.Process().memory_info().rss
    tested = under_test(llama)
    about = tested.about
    assert about["load_seconds"] > 0
    assert abs(about["memory"]["before_load"] - before) < 64 << 20
    assert tested.peak() >= about["memory"]["loaded"]
    model = opened("llama")
    assert 0 < about["bytes_per_token"] < sum(p.numel() * 4 for p in model.parameters()) + 1000


def test_models_that_are_no_use(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match="prompt=513 is more than the 512 positions of .*llama: 512 tokens or less"
    ):
        under_test(llama, prompt=513)
    with pytest.raises(ModelError, match="context=500 and new=13 are more than the 512 positions"):
        under_test(llama, context=500, new=13)
    under_test(llama, prompt=512, context=507, new=5)
    model = opened("llama")
    model.model.norm.weight.data[3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(NonFiniteError, match="logits of .* are NaN"):
        under_test(tmp_path)


@pytest.mark.parametrize("key", ["prompt", "context", "new", "rounds", "threads"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "4"])
def test_numbers_below_one_are_refused(key: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=f"{key}={value!r}: a whole number of 1 or more is expected"):
        BenchOptions(**{key: value})


class Stub:
    """Answers without a process, and keeps who was asked what."""

    asked: list[tuple[str, str]]
    speeds: dict[tuple[str, str], list[float]]
    inside = 0

    def __init__(self, name: str, threads: int) -> None:
        self.name, self.threads = name, threads

    def ask(self, do: str, **how: Any) -> Any:
        Stub.asked.append((self.name, do))
        if do == "open":
            return {
                "load_seconds": 1.5,
                "bytes_per_token": 1000,
                "memory": {"before_load": 1, "loaded": 2},
            }
        return 3 if do == "peak" else Stub.speeds[self.name, do].pop(0)

    def __enter__(self) -> "Stub":
        Stub.inside += 1
        return self

    def __exit__(self, *_: object) -> None:
        Stub.inside -= 1


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> type[Stub]:
    monkeypatch.setattr(turns, "Worker", Stub)
    monkeypatch.setattr(turns, "find_model", lambda model, **_: model)
    Stub.asked, Stub.inside = [], 0
    return Stub


def test_rounds_go_back_and_forth_and_figures_are_medians(stub: type[Stub]) -> None:
    memory = "the memory's bandwidth"
    stub.speeds = {
        ("a", "prefill"): [1.0, 2.0, 4.0],
        ("a", "decode"): [1.0, 0.5, 0.25],
        ("b", "prefill"): [2.0, 2.0, 2.0],
        ("b", "decode"): [8.0, 2.0, 4.0],
        (memory, "bandwidth"): [9e3, 10e3, 80e3],
    }
    found = turns.bench_models(["x/a", "x/b"], BenchOptions(prompt=16, context=3, new=8, rounds=3, threads=2))
    timed = [name for name, do in stub.asked if do == "decode"]
    assert timed == ["a", "b", "b", "a", "a", "b"]
    assert [do for name, do in stub.asked if name == "a"][1:3] == ["prefill", "decode"]
    assert found["bandwidth"] == {"median": 10e3, "low": 9e3, "high": 80e3}
    first, second = found["models"]
    assert first["prefill"] == {"median": 8.0, "low": 4.0, "high": 16.0}
    assert first["decode"] == {"median": 16.0, "low": 8.0, "high": 32.0}
    assert first["bandwidth_share"] == 16.0 * 1000 / 10e3
    assert second["decode"] == {"median": 2.0, "low": 1.0, "high": 4.0}
    assert second["memory"] == {"before_load": 1, "loaded": 2, "peak": 3}
    assert [found[key] for key in ("threads", "prompt_tokens", "context_tokens", "new_tokens", "rounds")] == [
        2, 16, 3, 8, 3,
    ]  # fmt: skip
    assert stub.inside == 0


def test_whoever_stops_it_leaves_no_process(stub: type[Stub]) -> None:
    class Stopping(roundel.Progress):
        def advance(self, steps: int = 1, note: str = "") -> None:
            self.stop_asked = True

    with pytest.raises(roundel.RoundelError, match="stopped"):
        turns.bench_models(["x/a"], BenchOptions(progress=Stopping()))
    assert stub.inside == 0


def test_lists_that_are_none(llama: Path) -> None:
    for models, words in (
        ([], "no model"),
        ([llama, str(llama)], "is given twice"),
        (str(llama), "a list of models is expected"),
    ):
        with pytest.raises(RecipeError, match=words):
            roundel.bench(models)
    with pytest.raises(ModelError, match="in a process of its own"):
        roundel.bench([opened("llama")])


@pytest.mark.slow("starts a process for each model")
def test_processes_are_asked_and_end(llama: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    roundel.quantize(
        llama, roundel.Recipe(method="rtn", group_size=32, format="roundel"), output=small, held_out=None
    )
    children = set(psutil.Process().children())
    threads = torch.get_num_threads()
    found = roundel.bench([llama, small], rounds=2, threads=1, **SMALL)
    assert [model["name"] for model in found["models"]] == ["llama", "small"]
    for model in found["models"]:
        for key in ("decode", "prefill"):
            assert 0 < model[key]["low"] <= model[key]["median"] <= model[key]["high"]
        memory = model["memory"]
        assert 0 < memory["before_load"] < memory["loaded"] <= memory["peak"]
        share = model["decode"]["median"] * model["bytes_per_token"] / found["bandwidth"]["median"]
        assert model["bandwidth_share"] == pytest.approx(share)
    assert set(psutil.Process().children()) == children
    assert torch.get_num_threads() == threads


@pytest.mark.slow("starts a process")
def test_errors_come_through_and_so_does_the_end_of_a_process(llama: Path) -> None:
    how = {**SMALL, "path": str(llama), "trust_remote_code": False, "allow_pickle": False}
    with Worker("llama", 1) as worker:
        with pytest.raises(ModelError, match="prompt=600 is more than"):
            worker.ask("open", **{**how, "prompt": 600})
        assert worker.ask("open", **how)["bytes_per_token"] > 0  # it is still there
        worker._process.kill()
        with pytest.raises(ModelError, match="process of llama is gone .killed by SIGKILL.*name fewer"):
            worker.ask("decode")
    assert worker._process.returncode is not None
