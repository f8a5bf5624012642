"""What text runs through in a model that sees or hears, what it passes by, and when there is no such path."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file, save_file

import roundel
from model.wrappers import CASES, GPTQ, TEXT, ids, opened, quantized
from roundel.errors import ModelError
from roundel.model.classes import auto_class

pytestmark = pytest.mark.slow("builds and quantizes multimodal models")


def test_what_text_passes_by_is_rounded_to_nearest_and_says_so(
    multimodal: Callable[[str], Path], tmp_path: Path
) -> None:
    (aside,) = CASES["mllama"].passed_by
    for recipe in (
        GPTQ,
        roundel.Recipe.load("autoround-light").with_settings(iters=2, nsamples=8, seqlen=32, bits=4),
    ):
        layers = quantized(multimodal("mllama"), tmp_path / recipe.method, recipe).manifest["layers"]
        for layer in layers:
            if layer["bits"] is not None:
                unread = layer["name"].startswith(f"{aside}.")
                assert (layer["tokens"] == 0) == unread
                assert ("saw" in layer["note"]) == unread, layer


def test_a_block_of_the_same_kind_must_not_be_passed_by(
    multimodal: Callable[[str], Path], tmp_path: Path
) -> None:
    """What text passes by for another reason are not the model's blocks."""
    model = opened(multimodal("llava"))
    first, *_, last = model.model.language_model.layers
    last.forward = first.forward
    model.model.language_model.forward = _without_the_last(model.model.language_model)
    with pytest.raises(ModelError, match="2 calls of the 3 blocks"):
        roundel.quantize(model, GPTQ, calibration=ids(8, 32))


def _without_the_last(decoder: Any) -> Callable[..., Any]:
    real = type(decoder).forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        every = decoder.layers
        decoder.layers = every[:-1]
        try:
            return real(decoder, *args, **kwargs)
        finally:
            decoder.layers = every

    return forward


def test_a_text_only_checkpoint_and_one_without_a_part(
    multimodal: Callable[[str], Path], tmp_path: Path
) -> None:
    """The decoder saved alone is a language model; a model that sees without its tower is no whole one."""
    model = opened(multimodal("gemma3"))
    alone = transformers.Gemma3ForCausalLM(model.config.text_config).eval()
    alone.model.load_state_dict(model.model.language_model.state_dict())
    alone.save_pretrained(tmp_path / "alone")
    done = quantized(tmp_path / "alone", tmp_path / "out")
    assert type(done.model).__name__ == "Gemma3ForCausalLM"
    assert not any("text decoder" in layer["reason"] for layer in done.manifest["layers"])
    for name, lost in (("llava", "vision_tower"), ("qwen2_audio", "lm_head")):
        folder = tmp_path / name
        opened(multimodal(name)).config.save_pretrained(folder)
        tensors = load_file(multimodal(name) / "model.safetensors")
        save_file({key: t for key, t in tensors.items() if lost not in key}, folder / "model.safetensors")
        with pytest.raises(ModelError, match="tensors are missing"):
            quantized(folder, tmp_path / "never")


def test_a_model_that_text_alone_does_not_run(tmp_path: Path) -> None:
    config = transformers.IdeficsConfig(
        **{key: TEXT[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")},
        num_attention_heads=4,
        use_resampler=False,
        vision_config={
            "embed_dim": 32,
            "image_size": 28,
            "patch_size": 14,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "intermediate_size": 64,
        },
    )
    transformers.IdeficsForVisionText2Text(config).save_pretrained(tmp_path / "source")
    with pytest.raises(ModelError, match="IdeficsForVisionText2Text does not run on text alone"):
        quantized(tmp_path / "source", tmp_path / "out", blocks="model.layers")
    recipe = roundel.Recipe(name="rtn", method="rtn", bits=4, group_size=32, start="minmax", format="dense")
    quantized(tmp_path / "source", tmp_path / "out", recipe, blocks="model.layers")
    assert type(opened(tmp_path / "out")).__name__ == "IdeficsForVisionText2Text"


@pytest.mark.parametrize(
    ("architecture", "found"),
    [
        ("Qwen3_5ForConditionalGeneration", "AutoModelForMultimodalLM"),
        ("Qwen3_5ForCausalLM", "AutoModelForCausalLM"),
        (None, "AutoModelForCausalLM"),
    ],
)
def test_the_checkpoints_own_class_decides(architecture: str | None, found: str) -> None:
    """Of a config that is known to both auto classes."""
    config = transformers.Qwen3_5Config()
    config.architectures = [architecture] if architecture else None
    assert auto_class(config).__name__ == found
