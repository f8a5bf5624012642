"""Models in memory that are no use are refused before any work; compiled ones and those with adapters are no such."""

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
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaForSequenceClassification,
    LlamaModel,
)

import roundel
from roundel.errors import ModelError, RecipeError, RoundelError
from workflows.callers import TUNED, differences, logits, opened, reader, recipe, state, with_lora
from zoo import zoo_model

pytestmark = pytest.mark.slow("opens a model for every kind of use")


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
