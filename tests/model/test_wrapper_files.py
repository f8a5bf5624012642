"""What stands beside the weights of a model that sees or hears: configs, files of its processor, other tensors."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedTokenizerFast

import roundel
from model.wrappers import (
    FORMATS,
    GPTQ,
    draw,
    opened,
    quantized,
    text_logits,
)

pytestmark = pytest.mark.slow("builds and quantizes multimodal models")


def test_the_head_is_untied_in_both_configs(multimodal: Callable[[str], Path], tmp_path: Path) -> None:
    assert AutoConfig.from_pretrained(multimodal("gemma3")).tie_word_embeddings
    recipe = roundel.Recipe(name="rtn", method="rtn", bits=4, group_size=32, sym=True, lm_head=True)
    for kind in FORMATS:
        done = quantized(multimodal("gemma3"), tmp_path / kind, recipe.with_settings(format=kind))
        written = json.loads((tmp_path / kind / "config.json").read_text())
        assert written["tie_word_embeddings"] is False
        assert written["text_config"]["tie_word_embeddings"] is False
        again = roundel.load(tmp_path / kind, packed=False)[0]
        assert torch.equal(text_logits(again), text_logits(done.model))


def test_files_of_the_processor_are_copied(multimodal: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(multimodal("llava"), tmp_path / "source"))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    own = PreTrainedTokenizerFast.from_pretrained(folder)
    own.chat_template = "{{ 'of the tokenizer' }}"
    own.save_pretrained(folder, save_jinja_files=False)
    files = {
        "preprocessor_config.json": '{"auto_map": {"AutoImageProcessor": "processing_own.Own"}, "size": 28}',
        "processor_config.json": '{"processor_class": "LlavaProcessor", "patch_size": 14}',
        "video_preprocessor_config.json": "{}",
        "chat_template.json": '{"chat_template": "of the processor"}',
        "processing_own.py": "from .helping_own import x\n",
        "helping_own.py": "x = 1\n",
        "additional_chat_templates/tools.jinja": "with tools",
    }
    for name, words in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(words)
    (folder / "notes.txt").write_text("no part of the model")
    for output, model in (("by_name", folder), ("in_memory", opened(folder))):
        recipe = roundel.Recipe(name="rtn", method="rtn", bits=4, group_size=32)
        roundel.quantize(model, recipe, output=tmp_path / output, tokenizer=own, held_out=None)
        for name, words in files.items():
            assert (tmp_path / output / name).read_text() == words, name
        assert not (tmp_path / output / "notes.txt").exists()
        # The processor's template is not hidden by the tokenizer's.
        assert not (tmp_path / output / "chat_template.jinja").exists()
        settings = json.loads((tmp_path / output / "tokenizer_config.json").read_text())
        assert settings["chat_template"] == own.chat_template


def test_a_tensor_without_a_place_is_carried_over(multimodal: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(multimodal("llava"), tmp_path / "source"))
    tensors = load_file(folder / "model.safetensors")
    tensors["mtp.fc.weight"] = draw(64, 128)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for kind in FORMATS:
        quantized(folder, tmp_path / kind, GPTQ.with_settings(format=kind))
        written = [load_file(file) for file in (tmp_path / kind).glob("*.safetensors")]
        (found,) = [one["mtp.fc.weight"] for one in written if "mtp.fc.weight" in one]
        assert torch.equal(found, tensors["mtp.fc.weight"])
    config = json.loads((tmp_path / "compressed-tensors" / "config.json").read_text())
    assert "mtp.fc" in config["quantization_config"]["ignore"]
