"""Several threads, each with a model of its own, at once: each gets what it gets alone.

transformers builds a class under changes that all threads see. Left alone, two threads that open models break each
other within a few tries: heads are missing, weights untied.
"""

import hashlib
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import TORCH_INIT_FUNCTIONS, TORCH_MODULES_TO_PATCH
from transformers.integrations import peft
from transformers.models.auto import auto_factory

import roundel
from roundel.model import turns
from zoo import zoo_model

pytestmark = pytest.mark.slow("opens models in many threads")

ARCHITECTURES = ("llama", "opt", "bloom", "gpt2", "mixtral")
IDS = torch.arange(5, 45)[None]
RECIPE = {"method": "autoround", "bits": 3, "group_size": 32, "iters": 3, "nsamples": 4, "seqlen": 32}
RECIPE |= {"format": "roundel", "batch_size": 2}


def at_once(jobs: dict[str, Callable[[], object]], times: int) -> list[str]:
    """What went otherwise than alone, in so many tries."""
    wanted = {name: job() for name, job in jobs.items()}
    wrong: list[str] = []

    def work(name: str) -> None:
        torch.set_num_threads(1)
        try:
            if jobs[name]() != wanted[name]:
                wrong.append(f"{name} is another")
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}")

    for _ in range(times):
        threads = [threading.Thread(target=work, args=(name,)) for name in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if wrong:
            break
    return wrong


def logits(model: torch.nn.Module) -> bytes:
    with torch.no_grad():
        return model(IDS).logits.float().numpy().tobytes()


def loaded(folder: Path) -> Callable[[], bytes]:
    return lambda: logits(roundel.load(folder)[0])


def hashed(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def test_models_are_opened_at_once() -> None:
    assert at_once({name: loaded(zoo_model(name)) for name in ARCHITECTURES}, 10) == []


def test_without_turns_they_break_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the lock is there for; where this fails, transformers has become safe, and it may go."""
    originals = transformers_functions()

    class Open:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(turns, "_lock", Open())
    try:
        assert at_once({name: loaded(zoo_model(name)) for name in ARCHITECTURES}, 40) != []
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)
        torch.set_default_dtype(torch.float32)


def transformers_functions() -> list[tuple[object, str, object]]:
    """What may not be as it was when two threads have broken each other."""

    found: list[tuple[object, str, object]] = [
        (PreTrainedModel, "tie_weights", PreTrainedModel.tie_weights),
        (torch, "linspace", torch.linspace),
        (peft, "find_adapter_config_file", peft.find_adapter_config_file),
        (auto_factory, "find_adapter_config_file", auto_factory.find_adapter_config_file),
    ]
    for module in (sys.modules[name] for name in TORCH_MODULES_TO_PATCH if name in sys.modules):
        for name in TORCH_INIT_FUNCTIONS:
            if hasattr(module, name):
                found.append((module, name, getattr(module, name)))
    return found


def test_all_is_as_it_was_afterwards() -> None:
    before = transformers_functions()
    register = torch.nn.Module.register_parameter
    assert at_once({name: loaded(zoo_model(name)) for name in ARCHITECTURES[:3]}, 3) == []
    assert all(getattr(owner, name) is function for owner, name, function in before)
    assert torch.nn.Module.register_parameter is register


def test_quantizing_measuring_and_opening_at_once(held_out: Path, tmp_path: Path) -> None:
    """Half precision and containers are opened beside the work: their types and empty weights are nobody else's."""
    numbers = iter(range(10_000))

    def quantized(name: str, stream: bool) -> str:
        out = tmp_path / str(next(numbers))
        recipe = roundel.Recipe.create(**RECIPE, calibration=str(held_out))
        roundel.quantize(zoo_model(name), recipe, output=out, stream=stream, held_out=None)
        return hashed(out)

    def measured(name: str) -> str:
        folder = zoo_model(name)
        return str(roundel.evaluate(folder, reference=folder, text=str(held_out), window=32, limit=2).texts)

    half, packed = tmp_path / "half", tmp_path / "packed"
    AutoModelForCausalLM.from_pretrained(zoo_model("llama"), dtype=torch.bfloat16).save_pretrained(half)
    roundel.quantize(
        zoo_model("opt"), roundel.Recipe.create(**RECIPE, calibration=str(held_out)), output=packed
    )
    jobs: dict[str, Callable[[], object]] = {
        **{f"quantize {n}": lambda n=n: quantized(n, False) for n in ("llama", "gpt2", "mixtral")},
        "stream opt": lambda: quantized("opt", True),
        **{f"evaluate {n}": lambda n=n: measured(n) for n in ("bloom", "mixtral")},
        "open half": lambda: [loaded(half)() for _ in range(6)],
        "open packed": lambda: [loaded(packed)() for _ in range(6)],
    }
    assert at_once(jobs, 3) == []


def test_a_thread_that_tunes_is_not_touched_by_one_that_opens() -> None:
    """Parameters that another thread makes meanwhile have memory, and values."""
    made: list[torch.nn.Module] = []
    with turns.empty_weights():
        own = torch.nn.Linear(4, 4)
        thread = threading.Thread(target=lambda: made.append(torch.nn.Linear(4, 4)))
        thread.start()
        thread.join()
    assert own.weight.is_meta
    assert not made[0].weight.is_meta
    assert not torch.nn.Linear(4, 4).weight.is_meta


def test_the_type_that_another_thread_sets_decides_nothing(held_out: Path, tmp_path: Path) -> None:
    """transformers sets torch's default type, for all threads, while it builds a model."""

    class Disturbing(roundel.Progress):
        def stage(self, title: str, total: int):
            torch.set_default_dtype(torch.float16)
            return super().stage(title, total)

    methods = {
        "autoround": RECIPE,
        "lrq": {**RECIPE, "method": "lrq"},
        "gptq": {**RECIPE, "method": "gptq", "iters": 0},
        "spqr": {**RECIPE, "method": "spqr", "iters": 0},
        "static": {**RECIPE, "act_bits": 8, "act_dynamic": False},
    }
    for name, keys in methods.items():
        keys = {key: value for key, value in keys.items() if value != 0}
        if name in ("gptq", "spqr"):
            keys.pop("iters", None)
        recipe = roundel.Recipe.create(**keys, calibration=str(held_out))
        found = []
        for progress in (None, Disturbing()):
            out = tmp_path / f"{name} {progress is None}"
            roundel.quantize(zoo_model("llama"), recipe, output=out, held_out=None, progress=progress)
            found.append(hashed(out))
        assert found[0] == found[1], name


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_does_not_wait_for_a_thread_that_it_has_not() -> None:
    """The lock is held where it is forked, by a thread that the fork does not have."""
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with turns.turn():
            held.set()
            free.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if turns._lock.acquire(timeout=5) else 1)
    _, status = os.waitpid(child, 0)
    free.set()
    thread.join()
    assert status == 0
