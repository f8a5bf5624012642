"""A folder, a hub id and a GGUF file through every format: ids, config, files, types, modes are those of the source."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import roundel
from hub import publish
from zoo.gguf_file import write_gguf

KINDS = ("folder", "hub", "gguf")
FORMATS = ("compressed-tensors", "dense", "roundel", "gptq")
TEXT = "Once  upon a time, The statement\n\n x\tжзя 文字 😀"
OURS = {"roundel.json"}
WEIGHTS = {
    "compressed-tensors": {"model.safetensors"},
    "dense": {"model.safetensors", "roundel_integers.safetensors"},
    "gptq": {"model.safetensors"},
    "roundel": {"roundel.safetensors"},
}


@pytest.fixture
def source(
    kind: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, dict[str, Any]]:
    """The model as it is named, and how transformers opens it."""
    if kind == "folder":
        return str(llama), {"pretrained_model_name_or_path": llama}
    if kind == "hub":
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        place = publish(tmp_path / "hub", llama, "acme/model", "1" * 40, "main")
        return "acme/model", {"pretrained_model_name_or_path": place}
    path = write_gguf(llama, tmp_path / "model.gguf")
    return str(path), {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_out_is_what_went_in(
    kind: str, format: str, stream: bool, source: tuple[str, dict[str, Any]], llama: Path, tmp_path: Path
) -> None:
    name, where = source
    out = tmp_path / "out"
    recipe = roundel.Recipe(method="rtn", group_size=32, sym=True, format=format)
    made = roundel.quantize(name, recipe, output=out, stream=stream, held_out=None)
    # Ids.
    tokenizers = [AutoTokenizer.from_pretrained(**where), AutoTokenizer.from_pretrained(out)]
    for special in (True, False):
        ids = [tokenizer(TEXT, add_special_tokens=special)["input_ids"] for tokenizer in tokenizers]
        assert ids[0] == ids[1]
    settings = json.loads((out / "tokenizer_config.json").read_text(encoding="utf-8"))
    if kind == "gguf":
        assert not settings.keys() & {"local_files_only", "is_local", "gguf_file"}
        assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 knows no other name
    # Files.
    beside = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    if kind != "gguf":
        beside = {path.name for path in llama.iterdir()} - {"model.safetensors"}
    assert {path.name for path in out.iterdir()} == beside | WEIGHTS[format] | OURS
    # Modes.
    mask = os.umask(0)
    os.umask(mask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o666 & ~mask}
    # The config.
    original = AutoModelForCausalLM.from_pretrained(**where, dtype="auto")
    wanted, found = original.config.to_dict(), AutoConfig.from_pretrained(out).to_dict()
    aside = {"quantization_config", "_name_or_path", "transformers_version", "architectures", "dtype"}
    assert {key: found[key] for key in wanted.keys() - aside} == {
        key: wanted[key] for key in wanted.keys() - aside
    }
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["dtype"] == "float32"
    # Types and bytes of what is not quantized.
    state = original.state_dict()
    stored = {key: t for path in out.glob("*.safetensors") for key, t in load_file(path).items()}
    quantized = {layer["name"] for layer in made.manifest["layers"] if layer["bits"]}
    kept = [key for key in state if key.removesuffix(".weight") not in quantized]
    assert len(kept) > 4
    for key in kept:
        assert stored[key].dtype == state[key].dtype
        assert torch.equal(stored[key], state[key])
    assert made.manifest["source"] == name
