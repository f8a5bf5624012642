"""What callers hold: models in memory are as they were after a call, are checked before any work, and are known again.

The laws run over a dense model, one with tied weights, one whose Linears are stored the other way round, and one with
stacked experts.
"""

import contextlib
import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
import transformers
from accelerate import dispatch_model
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    PreTrainedConfig,
)

import roundel
from roundel.errors import ModelError, RecipeError, RoundelError
from roundel.model.borrowed import borrowed
from zoo import zoo_model

pytestmark = pytest.mark.slow("calls every function on four architectures")

ARCHITECTURES = ("llama", "opt", "gpt2", "mixtral")
RTN = {"method": "rtn", "bits": 3, "group_size": 32, "sym": True, "format": "roundel"}
TUNED = {"method": "autoround", "bits": 3, "group_size": 32, "iters": 2, "nsamples": 4, "seqlen": 32}
TUNED |= {"format": "roundel"}
IDS = torch.arange(5, 45)[None]


def opened(name: str = "llama") -> Any:
    return AutoModelForCausalLM.from_pretrained(zoo_model(name))


def reader(name: str = "llama") -> Any:
    return AutoTokenizer.from_pretrained(zoo_model(name))


def recipe(**more: Any) -> roundel.Recipe:
    return roundel.Recipe.create(**{**RTN, **more})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def in_training(name: str) -> Any:
    """A model whose owner is in the middle of something, different for every part."""
    model = opened(name)
    model.train()
    model.config.use_cache = False
    model.generation_config.max_new_tokens = 7
    (model(IDS, labels=IDS).loss).backward()
    for number, (_, module) in enumerate(model.named_modules()):
        module.training = number % 3 != 0
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 4 != 0)
        if number % 5 == 0:
            parameter.grad = None
    model.seen = []
    last = list(model.modules())[-1]
    last.register_forward_hook(lambda *_: model.seen.append("forward") and None)
    model.register_forward_pre_hook(lambda *_: None)
    return model


def state(model: Any) -> dict[str, Any]:
    """All that a model is: objects by their identity, values by their bytes."""
    found: dict[str, Any] = {"class": type(model)}
    for name, module in model.named_modules():
        found |= {f"{name} {key}": id(value) for key, value in module.__dict__.items()}
        found[f"{name} class"] = type(module)
        for key, value in module.__dict__.items():
            if isinstance(value, dict):
                found |= {f"{name} {key} {inner}": id(item) for inner, item in value.items()}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
        found[f"tensor {name}"] = (
            id(tensor),
            tensor.data_ptr(),
            tensor.dtype,
            tensor.device,
            tensor.requires_grad,
            id(tensor.grad),
            None if tensor.grad is None else tensor.grad.numpy().tobytes(),
            tensor.detach().numpy().tobytes(),
        )
    for config in (model.config, model.generation_config):
        assert isinstance(config, PreTrainedConfig | GenerationConfig)
        found[f"config {type(config).__name__}"] = copy.deepcopy(config.to_dict())
        found |= {f"config {key}": id(value) for key, value in config.__dict__.items()}
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]


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


# One object is not two models.


def test_a_model_is_not_measured_against_itself(held_out: Path) -> None:
    model = opened()
    result = roundel.quantize(model, recipe())
    where = {"tokenizer": reader(), "text": str(held_out), "window": 32, "limit": 1}
    with pytest.raises(ModelError, match="are one object.*open the original anew"):
        roundel.evaluate(result.model, reference=model, **where)
    with pytest.raises(ModelError, match="are one object"):
        roundel.compare([zoo_model("llama"), result.model], model, **where)
    with pytest.raises(ModelError, match="are one object"):
        roundel.compare([model, result.model], zoo_model("llama"), **where)
    with pytest.raises(ModelError, match="are one object"):
        roundel.evaluate(torch.compile(model), reference=model, **where)


def test_nor_against_one_that_shares_its_weights(held_out: Path) -> None:
    model, other = opened(), opened()
    other.model.layers[1].mlp.up_proj.weight = model.model.layers[1].mlp.up_proj.weight
    where = {"tokenizer": reader(), "text": str(held_out), "window": 32, "limit": 1}
    with pytest.raises(ModelError, match=r"share weights \(model.layers.1.mlp.up_proj.weight\)"):
        roundel.evaluate(other, reference=model, **where)
    with pytest.raises(ModelError, match="share weights"):
        roundel.compare([other], model, **where)
    shallow = copy.copy(model)
    with pytest.raises(ModelError, match="share weights"):
        roundel.evaluate(shallow, reference=model, **where)
    base = opened()
    with pytest.raises(ModelError, match="share weights"):
        roundel.evaluate(with_lora(base), reference=base, **where)


def test_two_models_are_compared(held_out: Path) -> None:
    result = roundel.quantize(opened(), recipe())
    found = roundel.evaluate(
        result.model, reference=opened(), tokenizer=reader(), text=str(held_out), window=32, limit=2
    )
    assert found.texts[0].kl.mean.value > 0


# What was quantized is known again.


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_quantizing_twice_is_refused_as_of_folders(name: str, tmp_path: Path) -> None:
    model = opened(name)
    roundel.quantize(model, recipe(), output=tmp_path / "out", tokenizer=reader(name), held_out=None)
    refused = "is quantized already, by Roundel: the original model is expected.*allow_quantized=True"
    half, copied = copy.deepcopy(model).bfloat16(), copy.deepcopy(model)
    for given in (model, copied, half, copy.deepcopy(half).float(), torch.compile(copied)):
        for call in (roundel.quantize, roundel.inspect, roundel.plan):
            with pytest.raises(ModelError, match=refused):
                call(given, recipe(bits=8))
    with pytest.raises(ModelError, match=refused):
        roundel.quantize(tmp_path / "out", recipe(bits=8))
    again = roundel.quantize(model, recipe(bits=8), allow_quantized=True)
    read_from = again.manifest["original"]["read_from"]
    assert "model in memory that Roundel had quantized (rtn" in read_from
    assert "bits per weight" in read_from
    roundel.inspect(copied, recipe(bits=8), allow_quantized=True)


@pytest.mark.parametrize("format", ["dense", "compressed-tensors", "roundel"])
def test_so_is_what_was_loaded(format: str, tmp_path: Path) -> None:
    for name in ("llama", "mixtral"):
        out = tmp_path / name
        result = roundel.quantize(zoo_model(name), recipe(format=format), output=out, held_out=None)
        for model in (result.model, roundel.load(out)[0]):
            with pytest.raises(ModelError, match="is quantized already"):
                roundel.quantize(model, recipe(bits=8))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_fresh_weights_are_a_fresh_model(name: str, tmp_path: Path) -> None:
    model = opened(name)
    weights = copy.deepcopy(model.state_dict())
    wanted = roundel.quantize(copy.deepcopy(model), recipe()).model
    roundel.quantize(model, recipe(bits=2))
    model.load_state_dict(weights)
    found = roundel.quantize(model, recipe())
    assert "read_from" not in found.manifest["original"]
    assert torch.equal(logits(found.model), logits(wanted))
    roundel.quantize(opened(name), recipe())  # of the same folder, beside a marked one


def test_the_mark_is_not_written(llama: Path, tmp_path: Path) -> None:
    model = opened()
    config = model.config.to_dict()
    roundel.quantize(model, recipe())
    assert model.config.to_dict() == config
    model.save_pretrained(tmp_path / "saved")
    assert "roundel" not in (tmp_path / "saved" / "config.json").read_text(encoding="utf-8")
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert not hasattr(reopened, "roundel_mark")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reopened.parameters(), strict=True))


# What is no use is said before any work.


def with_lora(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))


def meta() -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(zoo_model("llama")))


def offloaded(folder: Path) -> Any:
    places = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    places |= {"model.layers.0": "cpu", "model.layers.1": "disk"}
    return AutoModelForCausalLM.from_pretrained(
        zoo_model("llama"), device_map=places, offload_folder=folder / "offloaded"
    )


def dispatched() -> Any:
    return dispatch_model(opened(), {"": "cpu"}, force_hooks=True)


def encoder_decoder() -> Any:
    sizes = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 1, "num_heads": 4, "vocab_size": 64}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))


def integers() -> Any:
    model = opened()
    weight = model.model.layers[0].mlp.up_proj.weight
    model.model.layers[0].mlp.up_proj.weight = nn.Parameter(
        weight.detach().to(torch.int8), requires_grad=False
    )
    return model


def dynamic() -> Any:
    return torch.ao.quantization.quantize_dynamic(opened(), {nn.Linear})


def from_a_quantizer() -> Any:
    model = opened()
    model.config.quantization_config = BitsAndBytesConfig(load_in_8bit=True)
    return model


def with_weight_norm() -> Any:
    model = opened()
    torch.nn.utils.parametrizations.weight_norm(model.model.layers[0].mlp.up_proj)
    return model


def pruned() -> Any:
    model = opened("gpt2")
    torch.nn.utils.prune.l1_unstructured(model.transformer.h[0].mlp.c_fc, "weight", amount=0.5)
    return model


def compiled_block() -> Any:
    model = opened()
    model.model.layers[0] = torch.compile(model.model.layers[0])
    return model


def of_class(kind: Any) -> Any:
    return kind.from_pretrained(zoo_model("llama"))


class Wrapper(nn.Module):
    """As training frameworks have them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.network = model


# Of any use: none.
USELESS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "meta": (lambda _: meta(), "without values .*open it without device_map, or name its folder"),
    "offloaded": (offloaded, "layers.1.* is offloaded, and not in memory: .*name its folder"),
    "dispatched": (lambda _: dispatched(), "dispatched by accelerate .*without device_map"),
    "classifier": (
        lambda _: of_class(LlamaForSequenceClassification),
        "LlamaForSequenceClassification in memory is no causal language model",
    ),
    "no head": (lambda _: of_class(LlamaModel), "LlamaModel in memory is no causal language model"),
    "encoder and decoder": (lambda _: encoder_decoder(), "no causal language model .*encoder"),
    "DataParallel": (
        lambda _: nn.DataParallel(opened()),
        r"wrapper around a LlamaForCausalLM.* pass its .module",
    ),
    "a wrapper": (lambda _: Wrapper(opened()), r"pass its .network"),
    "a module": (lambda _: nn.Linear(4, 4), "Linear in memory is no model of transformers"),
    "a compiled block": (lambda _: compiled_block(), "layers.0 of .* was compiled by itself"),
    "bytes": (lambda _: os.fsencode(zoo_model("llama")), r"os.fsdecode\(path\)"),
    "None": (lambda _: None, "NoneType is no model"),
    "a state": (lambda _: opened().state_dict(), "OrderedDict is no model|dict is no model"),
    "a pipeline": (
        lambda _: transformers.pipeline("text-generation", model=opened(), tokenizer=reader()),
        "Pipeline is no model, and holds one .* pass its .model",
    ),
}
# Of use where they run, and not as an original.
NO_ORIGINAL: dict[str, tuple[Callable[[Path], Any], str]] = {
    "PEFT": (lambda _: with_lora(opened()), "holds a PEFT adapter .*merge_and_unload"),
    "PEFT, inside": (
        lambda _: with_lora(opened()).base_model.model,
        "holds a PEFT adapter .*merge_and_unload",
    ),
    "integers": (lambda _: integers(), "up_proj.weight of .* has the type torch.int8"),
    "dynamic": (lambda _: dynamic(), "is quantized already .*plain weights is expected"),
    "weight norm": (lambda _: with_weight_norm(), "up_proj of .* is computed from other tensors .*permanent"),
    "pruning": (lambda _: pruned(), "c_fc of .* is computed from other tensors"),
    "another quantizer": (
        lambda _: from_a_quantizer(),
        r"quantized already \(bitsandbytes\).*name its folder",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", [*USELESS, *NO_ORIGINAL])
def test_what_is_no_original_is_refused_before_any_work(what: str, tmp_path: Path) -> None:
    make, words = {**USELESS, **NO_ORIGINAL}[what]
    model = make(tmp_path)
    inside = sorted(tmp_path.iterdir())
    with pytest.raises(ModelError, match=words):
        roundel.quantize(model, recipe(), tokenizer=reader(), output=tmp_path / "out", held_out=None)
    with pytest.raises(ModelError, match=words):
        roundel.quantize(model, recipe())
    with pytest.raises(ModelError, match=words):
        roundel.inspect(model, recipe())
    with pytest.raises(ModelError, match=words):
        roundel.plan(model, recipe(), output=tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == inside


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", USELESS)
def test_what_cannot_run_is_not_measured(what: str, held_out: Path, tmp_path: Path) -> None:
    make, words = USELESS[what]
    model, where = make(tmp_path), {"text": str(held_out), "window": 32, "limit": 1}
    with pytest.raises(ModelError, match=words):
        roundel.evaluate(model, tokenizer=reader(), **where)
    with pytest.raises(ModelError, match=words):
        roundel.generate(model, "The", tokenizer=reader())
    if what != "None":  # no reference
        with pytest.raises(ModelError, match=words):
            roundel.evaluate(zoo_model("llama"), reference=model, **where)
    with pytest.raises(ModelError, match=words):
        roundel.compare([model], zoo_model("llama"), **where)


def test_an_adapter_beside_the_weights_in_memory_is_measured(held_out: Path) -> None:
    tuned = with_lora(opened())
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            nn.init.constant_(parameter, 0.05)
    merged = copy.deepcopy(tuned).merge_and_unload()
    before = state(tuned)
    found = [
        roundel.evaluate(model, reference=zoo_model("llama"), text=str(held_out), window=32, limit=2)
        for model in (tuned, merged)
    ]
    assert found[0].texts[0].kl.mean.value > 0.001
    assert found[0].texts[0].kl.mean.value == pytest.approx(found[1].texts[0].kl.mean.value, rel=1e-3)
    assert differences(before, state(tuned)) == []
    roundel.compare([tuned], zoo_model("llama"), text=str(held_out), window=32, limit=1)
    roundel.quantize(merged, recipe())


@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_models_are_taken_for_what_they_are(in_place: bool, held_out: Path) -> None:
    """The code that was made of them is never run, and that of a model in place is gone when its weights are others."""

    def never(*_: Any) -> Any:
        raise AssertionError("compiled code was run")

    def compiled() -> tuple[Any, Any]:
        model = opened()
        if in_place:
            model.compile(backend=never)
            return model, model
        return torch.compile(model, backend=never), model

    wanted = roundel.quantize(opened(), recipe(**TUNED, calibration=str(held_out)), tokenizer=reader())
    given, plain = compiled()
    found = roundel.quantize(given, recipe(**TUNED, calibration=str(held_out)), tokenizer=reader())
    assert found.model is plain
    assert torch.equal(logits(found.model), logits(wanted.model))
    given, plain = compiled()
    before = state(plain)
    roundel.evaluate(given, tokenizer=reader(), text=str(held_out), window=32, limit=1)
    assert differences(before, state(plain)) == []


def test_classes_of_a_users_own(held_out: Path) -> None:
    class Mine(transformers.LlamaForCausalLM):
        pass

    class Classifier(LlamaForSequenceClassification):
        pass

    config = AutoConfig.from_pretrained(zoo_model("llama"))
    roundel.quantize(Mine(config), recipe())
    with pytest.raises(ModelError, match="no causal language model"):
        roundel.quantize(Classifier(config), recipe())


def test_damaged_weights_in_memory(held_out: Path) -> None:
    model = opened()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    before = state(model)
    with pytest.raises(RoundelError, match=r"layers\.1\.mlp\.up_proj\.weight of .* holds NaN"):
        roundel.quantize(model, recipe())
    with pytest.raises(RoundelError, match="NaN"):
        roundel.evaluate(model, tokenizer=reader(), text=str(held_out), window=32, limit=1)
    assert differences(before, state(model)) == []


def test_functions_that_want_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is open already"):
        roundel.load(opened())
    with pytest.raises(ModelError, match="several recipes"):
        roundel.sweep(opened(), [recipe()], tmp_path / "out")
    with pytest.raises(RecipeError, match="a list of models is expected"):
        roundel.compare(str(zoo_model("llama")), zoo_model("llama"))
    with pytest.raises(RecipeError, match="a list of models is expected"):
        roundel.compare(opened(), zoo_model("llama"))
    assert not list(tmp_path.iterdir())
