"""PEFT adapters without a base, of another model, or of no kind that can be merged; rows of `The model`."""

import shutil
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from bad_inputs.box import Box, edit, put
from bad_inputs.commands import quantize
from zoo import zoo_model


def _adapter_beside(box: Box) -> Path:
    """A whole model, and an adapter in the same folder."""
    model = box.model()
    for path in _adapter(box).glob("adapter*"):
        shutil.copyfile(path, model / path.name)
    return model


def _adapter(
    box: Box, kind: PeftConfig | None = None, *, name: str = "adapter", without: str = "", **config: Any
) -> Path:
    """A PEFT adapter with changes in its config."""
    base = AutoModelForCausalLM.from_pretrained(zoo_model("llama"))
    kind = kind or LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    get_peft_model(base, kind).save_pretrained(box / name)
    edit(box / name / "adapter_config.json", lambda data: [put(data, *change) for change in config.items()])
    if without:
        (box / name / without).unlink()
    return box / name


def _cut_adapter(box: Box) -> Path:
    adapter = _adapter(box)
    box.write("adapter/adapter_config.json", "{")
    return adapter


ADAPTERS = [
    (
        "a base for what is no adapter",
        "is no adapter, so there is no base to name",
        lambda b: quantize(b.model(), "--base", b.model(name="other")),
    ),
    (
        "a whole model with an adapter beside it, as an adapter",
        "is no adapter, so there is no base to name",
        lambda b: quantize(_adapter_beside(b), "--base", b.model(name="other")),
    ),
    (
        "an adapter whose base is not there",
        "its base model cannot be opened",
        lambda b: quantize(_adapter(b, base_model_name_or_path="nobody/nothing")),
    ),
    (
        "an adapter that names no base",
        "an adapter that names no base model",
        lambda b: quantize(_adapter(b, base_model_name_or_path=None)),
    ),
    (
        "an adapter of another model",
        "does not fit",
        lambda b: quantize(_adapter(b), "--base", b.model("opt", "other")),
    ),
    (
        "an adapter without its weights",
        "no adapter_model.safetensors",
        lambda b: quantize(_adapter(b, without="adapter_model.safetensors")),
    ),
    (
        "an adapter for another task",
        "an adapter for the task SEQ_CLS",
        lambda b: quantize(_adapter(b, task_type="SEQ_CLS")),
    ),
    (
        "an adapter of an unknown kind",
        "cannot be merged",
        lambda b: quantize(_adapter(b, peft_type="TELEPATHY")),
    ),
    ("an adapter's config cut", "adapter_config.json cannot be read", lambda b: quantize(_cut_adapter(b))),
    (
        "an adapter in front of the text",
        "puts learned vectors in front of the text",
        lambda b: quantize(_adapter(b, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))),
    ),
    (
        "an adapter of an adapter",
        "is an adapter itself",
        lambda b: quantize(_adapter(b), "--base", _adapter(b, name="other")),
    ),
]
