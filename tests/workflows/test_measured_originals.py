"""Reports measure a result against the original as the run opened it, whatever it was read from."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import roundel
from zoo import zoo_model
from zoo.quantized import fp8, gptq

pytestmark = [pytest.mark.reports, pytest.mark.slow("measures sources of every form")]

EIGHT = {"method": "rtn", "bits": 8, "group_size": 32, "sym": True}


def in_blocks(folder: Path) -> Path:
    return fp8(zoo_model("llama"), folder, (16, 32))


def in_integers(folder: Path) -> Path:
    return gptq(zoo_model("llama"), folder, 3)


def ours(folder: Path) -> Path:
    recipe = roundel.Recipe.create(**{**EIGHT, "bits": 3, "act_bits": 4})
    roundel.quantize(zoo_model("llama"), recipe, output=folder, held_out=None)
    return folder


def adapted(folder: Path) -> Path:
    base = AutoModelForCausalLM.from_pretrained(zoo_model("llama"))
    get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("make", [in_blocks, in_integers, ours, adapted])
def test_the_report_is_about_the_original_that_was_read(make: Callable[[Path], Path], tmp_path: Path) -> None:
    """Eight bits change next to nothing: a larger distance would be that to another original."""
    source, out = make(tmp_path / "source"), tmp_path / "out"
    done = roundel.quantize(
        source, roundel.Recipe.create(**EIGHT), output=out, stream=True, allow_quantized=make is ours
    )
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["quality"]["texts"][0]["kl"]["mean"]["value"] < 1e-3
    words = done.manifest["original"]["read_from"]
    assert words in (out / "report.html").read_text(encoding="utf-8").replace("&#39;", "'")
