"""An adapter and its base are one model.

The oracle is peft's own model, which computes with the adapter beside the base: merged, it must say the same.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import roundel
from roundel.errors import ModelError
from roundel.model import adapter as adapters
from roundel.system.progress import Progress
from roundel.workflows.open import open_model
from zoo import zoo_model
from zoo.quantized import nf4

pytestmark = pytest.mark.slow("merges adapters of every kind")

IDS = torch.arange(3, 35).view(2, -1)
RTN = {"method": "rtn", "bits": 8, "group_size": 32, "sym": True}


def trained(base: Path, folder: Path, kind: Any, tokens: int | None = None) -> torch.Tensor:
    """An adapter in a folder, with random values where training would have put some, and what it says."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if tokens:
        model.resize_token_embeddings(tokens, mean_resizing=False)
    tuned = get_peft_model(model, kind)
    draw = torch.Generator().manual_seed(0)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw)
    tuned.save_pretrained(folder)
    with torch.no_grad():
        return tuned.eval()(IDS).logits


def says(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def lora(**more: Any) -> LoraConfig:
    return LoraConfig(**{"task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj", "v_proj"], **more})


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


KINDS = {
    "lora": ("llama", lora(), None),
    "rslora": ("llama", lora(use_rslora=True, target_modules="all-linear"), None),
    "dora": ("llama", lora(use_dora=True), None),
    "saved embedding and head": ("llama", lora(modules_to_save=["embed_tokens", "lm_head"]), None),
    "more tokens": ("llama", lora(), 1030),
    "ia3": ("llama", IA3Config(task_type="CAUSAL_LM"), None),
    "loha": ("llama", LoHaConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]), None),
    "conv1d": ("gpt2", lora(target_modules=["c_attn"], fan_in_fan_out=True), None),
    "experts": ("qwen3_moe", lora(), None),
    "stacked experts": ("qwen3_moe", lora(target_parameters=["mlp.experts.down_proj"]), None),
    "tied": ("gemma3", lora(), None),
    "tied, more tokens": ("gemma3", lora(), 1030),
    "tied, embedding": ("gemma3", lora(target_modules=["q_proj", "embed_tokens"]), None),
    "tied, head": ("gemma3", lora(target_modules=["q_proj", "lm_head"]), None),
    "tied, saved embedding": ("gemma3", lora(modules_to_save=["embed_tokens"]), None),
    "some tokens": ("llama", lora(trainable_token_indices=[3, 5, 8]), None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_merged_it_says_what_peft_says(kind: str, tmp_path: Path) -> None:
    base, config, tokens = KINDS[kind]
    wanted = trained(zoo_model(base), tmp_path / "adapter", config, tokens)
    opened = open_model(tmp_path / "adapter", None, False, False)
    torch.testing.assert_close(says(opened.model), wanted, rtol=0, atol=2e-4)
    assert opened.parents == {"base": str(zoo_model(base)), "adapter": str(tmp_path / "adapter")}
    assert opened.tokenizer is not None
    # And is a plain model, that goes through a folder and back.
    out = tmp_path / "out"
    done = roundel.quantize(
        tmp_path / "adapter",
        roundel.Recipe.create(**RTN, format="dense"),
        output=out,
        stream=True,
        held_out=None,
    )
    assert done.manifest["original"]["base"] == str(zoo_model(base))
    assert done.manifest["original"]["adapter"] == str(tmp_path / "adapter")
    again, _ = roundel.load(out, packed=False)
    assert says(again).shape == wanted.shape
    kl = (
        torch.nn.functional.kl_div(says(again).log_softmax(-1), wanted.softmax(-1), reduction="batchmean")
        / 16
    )
    assert float(kl) < 0.01


def test_the_written_model_is_that_of_the_merged_one(tmp_path: Path) -> None:
    """The same bytes as when peft merges and saves, and the result is quantized."""
    trained(zoo_model("llama"), tmp_path / "adapter", lora())
    from peft import PeftModel

    merged = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(zoo_model("llama")), tmp_path / "adapter"
    )
    merged.merge_and_unload(safe_merge=True).save_pretrained(tmp_path / "merged")
    recipe = roundel.Recipe.create(**RTN)
    for source in ("adapter", "merged"):
        roundel.quantize(tmp_path / source, recipe, output=tmp_path / f"from-{source}", held_out=None)
    name = "model.safetensors"
    assert (tmp_path / "from-adapter" / name).read_bytes() == (tmp_path / "from-merged" / name).read_bytes()


def test_it_is_told_inspected_planned_and_measured(tmp_path: Path) -> None:
    trained(zoo_model("llama"), tmp_path / "adapter", lora())
    said: list[str] = []

    class Heard(Progress):
        def say(self, text: str) -> None:
            said.append(text)

    recipe = roundel.Recipe.create(**RTN)
    layers = roundel.inspect(tmp_path / "adapter", recipe, progress=Heard())
    assert [layer.name for layer in layers] == [x.name for x in roundel.inspect(zoo_model("llama"), recipe)]
    plan, _ = roundel.plan(tmp_path / "adapter", recipe, trial=False, progress=Heard())
    assert plan.output > 0
    out = tmp_path / "out"
    roundel.quantize(tmp_path / "adapter", recipe, output=out, stream=True, progress=Heard())
    assert len([words for words in said if "a LoRA adapter" in words and "merged into" in words]) == 3
    found = roundel.evaluate(out, text="pydoc", window=64, limit=4, reference=tmp_path / "adapter")
    assert found.texts[0].kl is not None
    assert found.texts[0].kl.mean.value < 0.01
    compared = roundel.compare([out], tmp_path / "adapter", text="pydoc", window=64, limit=2)
    assert compared["reference"]["bits_per_parameter"] == pytest.approx(32)


def test_where_the_base_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As named from the working folder, from the adapter's own folder, or by hand."""
    wanted = trained(zoo_model("llama"), tmp_path / "one" / "adapter", lora())
    folder = tmp_path / "one" / "adapter"
    shutil.copytree(zoo_model("llama"), tmp_path / "one" / "base")
    monkeypatch.chdir(tmp_path)
    for named in ("one/base", "../base"):
        edit(folder, base_model_name_or_path=named)
        assert torch.allclose(says(open_model(folder, None, False, False).model), wanted, atol=2e-4)
    edit(folder, base_model_name_or_path="gone/away")
    with pytest.raises(ModelError, match=r"base model cannot be opened.*gone/away.*--base"):
        open_model(folder, None, False, False)
    opened = open_model(folder, None, False, False, base=os.fspath(tmp_path / "one" / "base"))
    assert torch.allclose(says(opened.model), wanted, atol=2e-4)


def test_its_own_tokenizer_goes_before_that_of_the_base(tmp_path: Path) -> None:
    trained(zoo_model("llama"), tmp_path / "adapter", lora(), 1026)
    tokenizer = AutoTokenizer.from_pretrained(zoo_model("llama"))
    assert open_model(tmp_path / "adapter", None, False, False).tokenizer.get_vocab() == tokenizer.get_vocab()
    tokenizer.add_tokens(["<|user|>", "<|model|>"])
    tokenizer.save_pretrained(tmp_path / "adapter")
    assert "<|model|>" in open_model(tmp_path / "adapter", None, False, False).tokenizer.get_vocab()


def test_a_quantized_base_is_dequantized_first(tmp_path: Path) -> None:
    """QLoRA: the oracle is the same adapter on the dequantized base."""
    base = nf4(zoo_model("llama"), tmp_path / "base", nested=True)
    open_model(base, None, False, False).model.save_pretrained(tmp_path / "dense")
    wanted = trained(tmp_path / "dense", tmp_path / "adapter", lora())
    edit(tmp_path / "adapter", base_model_name_or_path=str(base))
    opened = open_model(tmp_path / "adapter", None, False, False)
    assert "merged into" in opened.read_from
    assert "read from bitsandbytes' NF4" in opened.read_from
    torch.testing.assert_close(says(opened.model).float(), wanted.float(), rtol=0, atol=0.1)


def test_pickled_weights_are_asked_for(tmp_path: Path) -> None:
    wanted = trained(zoo_model("llama"), tmp_path / "adapter", lora())
    from safetensors.torch import load_file

    safe = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(safe), tmp_path / "adapter" / "adapter_model.bin")
    safe.unlink()
    with pytest.raises(ModelError, match="--allow-pickle"):
        open_model(tmp_path / "adapter", None, False, False)
    assert torch.allclose(says(open_model(tmp_path / "adapter", None, False, True).model), wanted, atol=2e-4)


def test_a_tensor_of_another_layer_is_refused(tmp_path: Path) -> None:
    """peft loads what it knows and only warns of the rest."""
    from safetensors.torch import load_file, save_file

    trained(zoo_model("llama"), tmp_path / "adapter", lora())
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    tensors[name.replace(".layers.0.", ".layers.7.")] = tensors[name].clone()
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelError, match="has no place in the base"):
        open_model(tmp_path / "adapter", None, False, False)


def test_without_the_library_one_message_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(zoo_model("llama"), tmp_path / "adapter", lora())
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=r"is a PEFT adapter \(LORA\) of .*llama.*pip install 'roundel\[peft\]'"
    ):
        roundel.quantize(tmp_path / "adapter", roundel.Recipe.create(**RTN))
