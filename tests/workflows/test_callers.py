"""What callers hold: models in memory are as they were after a call, whether it ended well or not."""

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.utils.prune

import roundel
from roundel.errors import ModelError, RoundelError
from roundel.model.borrowed import borrowed
from workflows.callers import (
    ARCHITECTURES,
    IDS,
    TUNED,
    differences,
    in_training,
    logits,
    opened,
    reader,
    recipe,
    state,
)
from zoo import zoo_model

pytestmark = pytest.mark.slow("calls every function on four architectures")


class Failing(roundel.Progress):
    """An owner who has enough of it in the middle."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        raise KeyboardInterrupt


CALLS: dict[str, Callable[[Any, Any, Path], Any]] = {
    "evaluate": lambda m, t, text: roundel.evaluate(m, tokenizer=t, text=str(text), window=32, limit=2),
    "evaluate, as reference": lambda m, t, text: roundel.evaluate(
        zoo_model("llama"), reference=m, text=str(text), window=32, limit=2
    ),
    "compare": lambda m, t, text: roundel.compare(
        [m], copy.deepcopy(m), tokenizer=t, text=str(text), window=32, limit=2
    ),
    "compare, as reference": lambda m, t, text: roundel.compare(
        [copy.deepcopy(m)], m, tokenizer=t, text=str(text), window=32, limit=2
    ),
    "generate": lambda m, t, text: roundel.generate(m, "The statement", max_new_tokens=3, tokenizer=t),
    "inspect": lambda m, t, text: roundel.inspect(m, recipe()),
    "plan": lambda m, t, text: roundel.plan(
        m, recipe(**TUNED, calibration="self"), tokenizer=t, output=text.parent / "never"
    ),
}
FAILING: dict[str, Callable[[Any, Any, Path], Any]] = {
    "evaluate": lambda m, t, text: roundel.evaluate(
        m, tokenizer=t, text=str(text), window=32, limit=2, progress=Failing()
    ),
    "evaluate, no text": lambda m, t, text: roundel.evaluate(m, tokenizer=t, text="/absent.txt"),
    "compare": lambda m, t, text: roundel.compare(
        [zoo_model("llama"), m], zoo_model("llama"), text=str(text), window=32, limit=2, progress=Failing()
    ),
    "generate": lambda m, t, text: roundel.generate(m, "", tokenizer=t),
    "inspect": lambda m, t, text: roundel.inspect(m, recipe(group_size=7), blocks="nowhere.*"),
    "plan": lambda m, t, text: roundel.plan(m, recipe(**TUNED, calibration="/absent.txt"), tokenizer=t),
    "quantize, no text": lambda m, t, text: roundel.quantize(
        m, recipe(**TUNED, calibration="/absent.txt"), tokenizer=t
    ),
    "quantize, no blocks": lambda m, t, text: roundel.quantize(m, recipe(), blocks="nowhere.*"),
    "quantize, with activations": lambda m, t, text: roundel.quantize(
        m, recipe(**TUNED, act_bits=8), calibration="/absent.txt", tokenizer=t
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("call", CALLS)
def test_a_model_in_training_is_as_it_was(call: str, name: str, held_out: Path) -> None:
    model, tokenizer = in_training(name), reader(name)
    before = state(model)
    CALLS[call](model, tokenizer, held_out)
    assert differences(before, state(model)) == []


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("call", FAILING)
def test_also_after_an_error(call: str, name: str, held_out: Path) -> None:
    model, tokenizer = in_training(name), reader(name)
    before = state(model)
    with pytest.raises((RoundelError, KeyboardInterrupt)):
        FAILING[call](model, tokenizer, held_out)
    assert differences(before, state(model)) == []


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("fails", [False, True])
def test_wherever_it_was_moved_it_is_back_in_its_own_memory(fails: bool, name: str) -> None:
    model = in_training(name)
    before = state(model)
    with contextlib.suppress(KeyboardInterrupt), borrowed(model):
        assert not any(module.training for module in model.modules())
        assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
        model.double()
        model.config.use_cache, model.generation_config.top_k = True, 3
        model.register_forward_hook(lambda *_: None)
        model.to("meta")
        model.requires_grad_(True)
        if fails:
            raise KeyboardInterrupt
    assert differences(before, state(model)) == []


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_error_in_the_middle_of_quantizing_leaves_values_alone_odd(name: str, held_out: Path) -> None:
    """They cannot be had back; what they are is remembered."""

    class Late(roundel.Progress):
        steps = 0

        def advance(self, steps: int = 1, note: str = "") -> None:
            Late.steps += 1
            if Late.steps == 2:
                raise KeyboardInterrupt

    model, tokenizer = in_training(name), reader(name)
    before = state(model)
    tuned = roundel.Recipe.create(**TUNED, calibration=str(held_out), act_bits=8)
    with pytest.raises(KeyboardInterrupt):
        roundel.quantize(model, tuned, tokenizer=tokenizer, progress=Late())
    changed = differences(before, state(model))
    assert all(key.startswith("tensor ") or key == " roundel_mark" for key in changed), changed
    for key in changed:
        if key.startswith("tensor "):
            # Where it is is the engine's; what it is not.
            was, now = before[key], state(model)[key]
            assert (was[0], *was[2:7]) == (now[0], *now[2:7])
    if " roundel_mark" in changed:
        with pytest.raises(ModelError, match="changed in part.*open it anew"):
            roundel.quantize(model, recipe())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_training_on_gives_what_it_gives_without_a_measurement(name: str, held_out: Path) -> None:
    def trained(measured: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = opened(name).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(2):
            model(IDS, labels=IDS).loss.backward()
            if measured:
                roundel.evaluate(model, tokenizer=reader(name), text=str(held_out), window=32, limit=1)
            optimizer.step()
            optimizer.zero_grad()
        return model.state_dict()

    with_it, without = trained(True), trained(False)
    assert all(torch.equal(with_it[key], tensor) for key, tensor in without.items())


def test_old_gradients_are_no_part_of_a_run(llama: Path) -> None:
    tuned = roundel.Recipe.create(**TUNED, calibration="self")
    wanted = roundel.quantize(opened(), tuned, tokenizer=reader()).model
    found = roundel.quantize(in_training("llama"), tuned, tokenizer=reader()).model
    assert torch.equal(logits(found), logits(wanted))
    assert all(p.grad is None and not p.requires_grad for p in found.parameters())
    assert not any(module.training for module in found.modules())
