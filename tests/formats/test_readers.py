"""Which clients open what is written is said, from the form that is written."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import roundel
from roundel.system.progress import Progress


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a width that 128 does not divide: 576 and 1536, as SmolLM2-135M has them."""
    folder = tmp_path_factory.mktemp("odd") / "model"
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 1, "vocab_size": 256}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 64}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **sizes, **heads)).save_pretrained(folder)
    return folder


class Told(Progress):
    """Remembers what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    @property
    def clients(self) -> str:
        """The one line about clients."""
        (line,) = [line for line in self.said if line.startswith("Opens in: ")]
        return line


CASES: list[tuple[dict[str, Any], str, str]] = [
    # settings, strategies as written, words
    (
        {},
        "group 64",
        r"^Opens in: transformers, vLLM\. Groups of 128 are written as 64, to divide every row$",
    ),
    (
        {"sym": True},
        "group 128, group 64",
        r"^Opens in: transformers, vLLM\. Groups of 128 are written as 64",
    ),
    ({"group_size": 64}, "group 64", r"^Opens in: transformers, vLLM$"),
    ({"group_size": -1}, "channel None", r"^Opens in: transformers, vLLM$"),
    ({"bits": 3, "group_size": 64}, "group 64", r"transformers\. Not in vLLM.*not with 3: set sym=true"),
    ({"bits": 3, "group_size": 64, "sym": True}, "group 64", r"recent vLLM on a GPU\. vLLM on a CPU"),
    ({"bits": 8, "group_size": 64, "sym": True}, "group 64", r"transformers, vLLM on a GPU\."),
    (
        {"group_size": 64, "layers": {"*.up_proj": {"bits": 3}}},
        "block None",
        r"transformers\. Not in vLLM.*several schemes.*set sym=true, or one width",
    ),
    (
        {"group_size": 64, "sym": True, "act_bits": 8, "bits": 8},
        "group 64",
        r"vLLM is untried with quantized",
    ),
    (
        {"format": "gptq", "sym": True},
        "",
        r"^Opens in: transformers with gptqmodel, GPTQModel, vLLM, onnxruntime-genai\. Groups of 128 are written as 64",
    ),
    (
        {"format": "gptq", "group_size": 64},
        "",
        r"^Opens in: transformers with gptqmodel, onnxruntime-genai\. GPTQModel.*gptq_v2.*vLLM.*awq",
    ),
    (
        {"format": "gptq_v2", "group_size": 64},
        "",
        r"^Opens in: transformers with gptqmodel, GPTQModel\. Not in vLLM.*genai.*use --format gptq there$",
    ),
    (
        {"format": "gptq", "sym": True, "bits": 8},
        "",
        r"GPTQModel, vLLM on a GPU, onnx.*vLLM on a CPU reads 4",
    ),
    ({"format": "gptq", "sym": True, "bits": 3, "group_size": 32}, "", r"GPTQModel\. Not in vLLM.*4 and 8"),
    ({"format": "gptq", "sym": True, "group_size": -1}, "", r"^Opens in: vLLM\. GPTQModel fails on a CPU"),
    (
        {"format": "gptq", "sym": True, "group_size": 64, "layers": {"*.up_proj": {"bits": 8}}},
        "",
        r"^Opens in: GPTQModel, vLLM on a GPU\. transformers reads one width",
    ),
    (
        {"format": "gptq", "sym": True, "group_size": 64, "skip": ["*.up_proj"]},
        "",
        r"^Opens in: transformers with gptqmodel, GPTQModel, vLLM$",
    ),
    (
        {"format": "awq", "group_size": 64},
        "",
        r"^Opens in: transformers with gptqmodel, GPTQModel, vLLM, onnxruntime-genai$",
    ),
    (
        {"format": "gptq", "sym": True, "group_size": 64, "lm_head": True},
        "",
        r"^Opens in: GPTQModel, vLLM, onnxruntime-genai\. transformers leaves a quantized head.*lm_head=false$",
    ),
    ({"format": "awq", "group_size": 64, "lm_head": True}, "", r"^Opens in: GPTQModel, vLLM.*lm_head=false$"),
    ({"format": "awq", "group_size": -1}, "", r"^Opens in: vLLM\. GPTQModel fails on a CPU.*AWQ_TORCH"),
    ({"format": "auto-round", "group_size": 64, "sym": True}, "", r"transformers with auto-round, vLLM$"),
    (
        {"format": "auto-round", "group_size": 64},
        "",
        r"^Opens in: transformers with auto-round\. Not in vLLM",
    ),
    ({"format": "dense"}, "", r"^Opens in: whatever opens the original$"),
    ({"format": "dense", "act_bits": 8}, "", r"Activations are quantized by roundel alone"),
    ({"format": "roundel"}, "", r"^Opens in: roundel\."),
]


@pytest.mark.parametrize(("settings", "strategies", "words"), CASES)
def test_the_line_says_what_is_written(
    settings: dict[str, Any], strategies: str, words: str, odd: Path, tmp_path: Path
) -> None:
    recipe = roundel.Recipe(**{"method": "rtn", "bits": 4, "group_size": 128, **settings})
    lines = []
    for work in (
        lambda told: roundel.inspect(odd, recipe, progress=told),
        lambda told: roundel.plan(odd, recipe, output=tmp_path / "out", trial=False, progress=told),
        lambda told: roundel.quantize(odd, recipe, output=tmp_path / "out", held_out=None, progress=told),
    ):
        told = Told()
        result = work(told)
        lines.append(told.clients)
    assert len(set(lines)) == 1
    assert re.search(words, lines[0]), lines[0]
    assert lines[0].startswith(f"Opens in: {', '.join(result.manifest['opens_in'])}")
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    groups = config.get("quantization_config", {}).get("config_groups", {}).values()
    found = sorted({f"{g['weights']['strategy']} {g['weights']['group_size']}" for g in groups})
    if found and strategies != "block None":
        assert ", ".join(found) == strategies
    elif strategies == "block None":
        assert "block None" in found


def test_common_groups_change_no_weight(odd: Path, tmp_path: Path) -> None:
    """The tuned groups are 128 wide; on disk their statistics are repeated."""
    recipe = roundel.Recipe(method="rtn", bits=4, group_size=128)
    tuned = roundel.quantize(odd, recipe).model
    roundel.quantize(odd, recipe, output=tmp_path / "out", held_out=None)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, tuned(ids).logits)


def test_nothing_is_said_of_what_stays_in_memory(llama: Path) -> None:
    told = Told()
    roundel.quantize(llama, roundel.Recipe(method="rtn", group_size=32), progress=told)
    assert not [line for line in told.said if line.startswith("Opens in")]
