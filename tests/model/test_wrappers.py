"""Language models inside models that see or hear: the text decoder is quantized, everything else is carried over.

The models are small, of transformers' own classes, with random weights. The oracles are transformers itself (the folder
opened by the class that its config names, on text, on a picture, on sound) and safetensors (bytes of the towers).
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerFast

import roundel
from roundel.errors import ModelError
from roundel.model.blocks import find_blocks
from roundel.model.classes import auto_class
from roundel.workflows.open import open_model
from zoo.training import train_tokenizer

pytestmark = pytest.mark.slow("builds and quantizes multimodal models")

FORMATS = ("roundel", "dense", "compressed-tensors")
# A token that stands for a piece of a picture or of sound, beside it what may stand in texts.
PIECE, ORDINARY = 1023, (3, 900)
TEXT = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
# Towers are heavier than the text decoder, and as wide: nothing but structure tells them apart.
EYE = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
CLIP = {**EYE, "image_size": 28, "patch_size": 14}
SMALL_CLIP = {**CLIP, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
Inputs = dict[str, torch.Tensor]


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


def ids(rows: int, length: int, pieces: range = range(0), seed: int = 0) -> torch.Tensor:
    """Token ids, some of them for pieces of something else."""
    found = torch.randint(*ORDINARY, (rows, length), generator=torch.Generator().manual_seed(seed))
    found[:, list(pieces)] = PIECE
    return found


@dataclass(frozen=True)
class Case:
    """A model.

    Attributes:
        name: of its class.
        config: class and arguments.
        sensed: inputs with a picture or sound.
        blocks: the list of its decoder blocks.
        towers: beginnings of the names of what is beside the text decoder.
        passed_by: blocks that text passes by.
    """

    name: str
    config: tuple[str, dict[str, Any]]
    sensed: Callable[[], Inputs]
    blocks: str
    towers: tuple[str, ...]
    passed_by: tuple[str, ...] = ()


def picture(length: int = 24) -> Inputs:
    """Four pieces of one."""
    return {"input_ids": ids(1, length, range(5, 9)), "pixel_values": draw(1, 3, 28, 28)}


def picture_of_gemma() -> Inputs:
    found = picture()
    return {**found, "token_type_ids": (found["input_ids"] == PIECE).long()}


def picture_of_qwen() -> Inputs:
    tokens = ids(1, 24, range(5, 9))
    tokens[0, 4] = 1021
    return {
        "input_ids": tokens,
        "pixel_values": draw(16, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": (tokens == PIECE).int(),
    }


def picture_of_mllama() -> Inputs:
    return {
        "input_ids": ids(1, 12),
        "pixel_values": draw(1, 1, 1, 3, 28, 28),
        "aspect_ratio_ids": torch.tensor([[1]]),
        "aspect_ratio_mask": torch.ones(1, 1, 1, dtype=torch.long),
        "cross_attention_mask": torch.ones(1, 12, 1, 1, dtype=torch.long),
    }


def sound() -> Inputs:
    return {
        "input_ids": ids(1, 24, range(4, 12)),
        "input_features": draw(1, 16, 32),
        "feature_attention_mask": torch.ones(1, 32, dtype=torch.long),
        "attention_mask": torch.ones(1, 24, dtype=torch.long),
    }


CASES = {
    # Normalized towers and text in one class; AutoModelForCausalLM opens it too.
    "gemma3": Case(
        "Gemma3ForConditionalGeneration",
        (
            "Gemma3Config",
            {
                "text_config": {**TEXT, "head_dim": 16, "sliding_window": 8},
                "vision_config": CLIP,
                "mm_tokens_per_image": 4,
                "image_token_index": PIECE,
                "boi_token_index": 1021,
                "eoi_token_index": 1022,
            },
        ),
        picture_of_gemma,
        "model.language_model.layers",
        ("model.vision_tower.", "model.multi_modal_projector."),
    ),
    # A checkpoint with other names than the model's.
    "llava": Case(
        "LlavaForConditionalGeneration",
        (
            "LlavaConfig",
            {
                "text_config": {**TEXT, "model_type": "llama"},
                "vision_config": {**CLIP, "model_type": "clip_vision_model", "projection_dim": 64},
                "image_token_index": PIECE,
            },
        ),
        picture,
        "model.language_model.layers",
        ("model.vision_tower.", "model.multi_modal_projector."),
    ),
    # Positions of three axes.
    "qwen2_5_vl": Case(
        "Qwen2_5_VLForConditionalGeneration",
        (
            "Qwen2_5_VLConfig",
            {
                "text_config": {
                    **TEXT,
                    "rope_parameters": {
                        "rope_type": "default",
                        "mrope_section": [2, 3, 3],
                        "rope_theta": 1e4,
                    },
                },
                "vision_config": {
                    "depth": 4,
                    "hidden_size": 64,
                    "intermediate_size": 256,
                    "num_heads": 4,
                    "out_hidden_size": 64,
                    "patch_size": 14,
                    "spatial_merge_size": 2,
                    "fullatt_block_indexes": [1],
                    "window_size": 28,
                },
                "image_token_id": PIECE,
                "video_token_id": 1022,
                "vision_start_token_id": 1021,
                "vision_end_token_id": 1020,
            },
        ),
        picture_of_qwen,
        "model.language_model.layers",
        ("model.visual.",),
    ),
    # A block of cross-attention to pictures among those of text.
    "mllama": Case(
        "MllamaForConditionalGeneration",
        (
            "MllamaConfig",
            {
                "text_config": {
                    **TEXT,
                    "cross_attention_layers": [1],
                    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
                },
                "vision_config": {
                    **SMALL_CLIP,
                    "num_global_layers": 1,
                    "attention_heads": 4,
                    "intermediate_layers_indices": [0],
                    "vision_output_dim": 64,
                    "max_num_tiles": 1,
                    "supported_aspect_ratios": [[1, 1]],
                },
                "image_token_index": PIECE,
            },
        ),
        picture_of_mllama,
        "model.language_model.layers",
        ("model.vision_model.", "model.multi_modal_projector."),
        ("model.language_model.layers.1",),
    ),
    # Sound.
    "qwen2_audio": Case(
        "Qwen2AudioForConditionalGeneration",
        (
            "Qwen2AudioConfig",
            {
                "text_config": {**TEXT, "model_type": "qwen2"},
                "audio_config": {
                    "d_model": 64,
                    "encoder_layers": 4,
                    "encoder_attention_heads": 4,
                    "encoder_ffn_dim": 256,
                    "num_mel_bins": 16,
                    "max_source_positions": 16,
                },
                "audio_token_index": PIECE,
            },
        ),
        sound,
        "model.language_model.layers",
        ("model.audio_tower.", "model.multi_modal_projector."),
    ),
    # Its forward pass wants a picture: the language model inside is called.
    "blip_2": Case(
        "Blip2ForConditionalGeneration",
        (
            "Blip2Config",
            {
                "text_config": {
                    **TEXT,
                    "model_type": "opt",
                    "ffn_dim": 96,
                    "word_embed_proj_dim": 64,
                },
                "vision_config": SMALL_CLIP,
                "qformer_config": {
                    "vocab_size": 64,
                    "hidden_size": 64,
                    "intermediate_size": 256,
                    "num_hidden_layers": 4,
                    "num_attention_heads": 4,
                    "encoder_hidden_size": 32,
                },
                "num_query_tokens": 4,
                "image_token_index": PIECE,
            },
        ),
        lambda: {**picture(), "input_ids": ids(1, 24, range(4))},
        "language_model.model.decoder.layers",
        ("vision_model.", "qformer.", "language_projection."),
    ),
}
NAMES = list(CASES)
GPTQ = roundel.Recipe(
    name="gptq",
    method="gptq",
    bits=4,
    group_size=32,
    sym=True,
    nsamples=8,
    seqlen=32,
    batch_size=4,
    amp="float32",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model with its tokenizer."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = made[name] = tmp_path_factory.mktemp(name)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = build(name)
            model.save_pretrained(folder)
            train_tokenizer().save_pretrained(folder)
        return made[name]

    return make


def build(name: str) -> Any:
    case = CASES[name]
    kind, arguments = case.config
    model = getattr(transformers, case.name)(getattr(transformers, kind)(**arguments)).eval()
    for parameter in model.parameters():  # gates begin at zero, and would hide what is behind them
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model


def opened(folder: Path) -> Any:
    """By the class that its config names."""
    config = AutoConfig.from_pretrained(folder)
    (name,) = config.architectures
    return getattr(transformers, name).from_pretrained(folder).eval()


@torch.no_grad()
def logits(model: Any, inputs: Inputs) -> torch.Tensor:
    return model(**inputs).logits


def text_logits(model: Any) -> torch.Tensor:
    inside = model.language_model if type(model).__name__.startswith("Blip2") else model
    return logits(inside, {"input_ids": ids(2, 24)})


def quantized(source: Path, output: Path, recipe: roundel.Recipe = GPTQ, **more: Any) -> roundel.Quantized:
    calibration = ids(8, 32, seed=1) if recipe.needs_calibration else None
    return roundel.quantize(source, recipe, output=output, calibration=calibration, held_out=None, **more)


@pytest.mark.parametrize("name", NAMES)
def test_the_blocks_are_those_of_the_text_decoder(name: str) -> None:
    assert find_blocks(build(name)).name == CASES[name].blocks


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", NAMES)
def test_a_written_folder_opens_by_its_own_class_with_equal_logits(
    name: str, kind: str, source: Callable[[str], Path], tmp_path: Path
) -> None:
    case, original = CASES[name], opened(source(name))
    done = quantized(source(name), tmp_path / "out", GPTQ.with_settings(format=kind))
    again = roundel.load(tmp_path / "out")[0] if kind == "roundel" else opened(tmp_path / "out")
    assert type(again).__name__ == case.name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [case.name]
    sensed = case.sensed()
    # transformers unpacks at the first pass of the whole model.
    assert torch.equal(logits(again, sensed), logits(done.model, sensed))
    assert torch.equal(text_logits(again), text_logits(done.model))
    # The picture counts in it, and the rounding too.
    blind = {key: value * 0 if value.is_floating_point() else value for key, value in sensed.items()}
    assert not torch.equal(logits(again, blind), logits(again, sensed))
    assert not torch.equal(logits(original, sensed), logits(again, sensed))


@pytest.mark.parametrize("name", NAMES)
def test_towers_are_carried_over_and_listed(name: str, source: Callable[[str], Path], tmp_path: Path) -> None:
    case, model = CASES[name], build(name)
    packed = GPTQ.with_settings(format="compressed-tensors")
    layers = quantized(source(name), tmp_path / "out", packed).manifest["layers"]
    before, after = (load_file(folder / "model.safetensors") for folder in (source(name), tmp_path / "out"))
    plain = {key for key in before if key in after}
    assert all(torch.equal(before[key].view(torch.uint8), after[key].view(torch.uint8)) for key in plain)
    # Of the checkpoint nothing but the decoder's Linears is packed.
    stack = find_blocks(model)
    linears = sum(isinstance(m, nn.Linear) for block in stack.blocks for m in block.modules())
    assert len(before.keys() - plain) == linears == sum(layer["bits"] is not None for layer in layers)
    table = {layer["name"]: layer for layer in layers}
    beside = {
        key: m
        for key, m in model.named_modules()
        if key.startswith(case.towers) and (isinstance(m, nn.Linear) or key in table)
    }
    assert beside
    for key in beside:
        assert table[key]["reason"].startswith("no part of the text decoder"), key
    # Clients look for the names that the checkpoint has.
    ignored = set(json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"])
    kept = {key.removesuffix(".weight") for key in plain if key.endswith(".weight") and before[key].ndim == 2}
    embeddings = {key for key in kept if "embed" in key or "position" in key}
    assert kept - ignored <= embeddings
    assert {key for key, m in beside.items() if isinstance(m, nn.Linear)} <= ignored


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["gemma3", "llava", "qwen2_5_vl", "mllama", "blip_2"])
def test_streamed_is_the_same_and_is_measured_block_by_block(
    name: str, kind: str, source: Callable[[str], Path], tmp_path: Path, held_out: Path
) -> None:
    recipe = roundel.Recipe(
        name="t",
        method="autoround",
        bits=4,
        group_size=32,
        sym=True,
        iters=3,
        nsamples=8,
        seqlen=32,
        batch_size=4,
    ).with_settings(format=kind)
    quantized(source(name), tmp_path / "whole", recipe)
    quantized(source(name), tmp_path / "streamed", recipe, stream=True)
    whole, streamed = (
        {file.name: file.read_bytes() for file in (tmp_path / one).glob("*.safetensors")}
        for one in ("whole", "streamed")
    )
    assert whole == streamed
    text = {"text": str(held_out), "window": 32, "limit": 3, "reference": source(name)}
    at_once = roundel.evaluate(tmp_path / "whole", **text, block_by_block=False).texts[0]
    in_turn = roundel.evaluate(tmp_path / "whole", **text, block_by_block=True).texts[0]
    assert at_once.kl.mean.value > 0
    assert in_turn.kl.mean.value == pytest.approx(at_once.kl.mean.value, rel=1e-4)


def test_what_text_passes_by_is_rounded_to_nearest_and_says_so(
    source: Callable[[str], Path], tmp_path: Path
) -> None:
    (aside,) = CASES["mllama"].passed_by
    for recipe in (
        GPTQ,
        roundel.Recipe.load("autoround-light").with_settings(iters=2, nsamples=8, seqlen=32, bits=4),
    ):
        layers = quantized(source("mllama"), tmp_path / recipe.method, recipe).manifest["layers"]
        for layer in layers:
            if layer["bits"] is not None:
                unread = layer["name"].startswith(f"{aside}.")
                assert (layer["tokens"] == 0) == unread
                assert ("saw" in layer["note"]) == unread, layer


def test_a_block_of_the_same_kind_must_not_be_passed_by(
    source: Callable[[str], Path], tmp_path: Path
) -> None:
    """What text passes by for another reason are not the model's blocks."""
    model = opened(source("llava"))
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


def test_perplexity_and_generation_on_text(
    source: Callable[[str], Path], tmp_path: Path, held_out: Path
) -> None:
    for name in ("qwen2_5_vl", "blip_2", "mllama"):
        quantized(source(name), tmp_path / name)
        found = roundel.evaluate(tmp_path / name, text=str(held_out), window=32, limit=4).texts[0]
        assert 500 < found.perplexity.value < 2500  # of random weights, about the vocabulary
        assert len(roundel.generate(tmp_path / name, "The statement", max_new_tokens=4)) >= len(
            "The statement"
        )


def test_a_model_writes_its_own_text(source: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("llava", "blip_2"):
        done = roundel.quantize(source(name), GPTQ, output=tmp_path / name, held_out=None)
        assert done.manifest["calibration"]["source"] == "text sampled from the model itself"


def test_the_head_is_untied_in_both_configs(source: Callable[[str], Path], tmp_path: Path) -> None:
    assert AutoConfig.from_pretrained(source("gemma3")).tie_word_embeddings
    recipe = roundel.Recipe(name="rtn", method="rtn", bits=4, group_size=32, sym=True, lm_head=True)
    for kind in FORMATS:
        done = quantized(source("gemma3"), tmp_path / kind, recipe.with_settings(format=kind))
        written = json.loads((tmp_path / kind / "config.json").read_text())
        assert written["tie_word_embeddings"] is False
        assert written["text_config"]["tie_word_embeddings"] is False
        again = roundel.load(tmp_path / kind)[0]
        assert torch.equal(text_logits(again), text_logits(done.model))


def test_files_of_the_processor_are_copied(source: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source("llava"), tmp_path / "source"))
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


def test_a_text_only_checkpoint_and_one_without_a_part(source: Callable[[str], Path], tmp_path: Path) -> None:
    """The decoder saved alone is a language model; a model that sees without its tower is no whole one."""
    model = opened(source("gemma3"))
    alone = transformers.Gemma3ForCausalLM(model.config.text_config).eval()
    alone.model.load_state_dict(model.model.language_model.state_dict())
    alone.save_pretrained(tmp_path / "alone")
    done = quantized(tmp_path / "alone", tmp_path / "out")
    assert type(done.model).__name__ == "Gemma3ForCausalLM"
    assert not any("text decoder" in layer["reason"] for layer in done.manifest["layers"])
    for name, lost in (("llava", "vision_tower"), ("qwen2_audio", "lm_head")):
        folder = tmp_path / name
        opened(source(name)).config.save_pretrained(folder)
        tensors = load_file(source(name) / "model.safetensors")
        save_file({key: t for key, t in tensors.items() if lost not in key}, folder / "model.safetensors")
        with pytest.raises(ModelError, match="tensors are missing"):
            quantized(folder, tmp_path / "never")


def test_a_tensor_without_a_place_is_carried_over(source: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source("llava"), tmp_path / "source"))
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


def test_streamed_weights_of_a_packed_folder_are_those_of_the_whole(
    source: Callable[[str], Path], tmp_path: Path
) -> None:
    quantized(source("llava"), tmp_path / "out", GPTQ.with_settings(format="compressed-tensors"))
    whole = roundel.load(tmp_path / "out")[0]
    text_logits(whole)  # transformers unpacks at the first pass
    streamed = open_model(
        tmp_path / "out", None, False, False, quantized=True, stream_with=tmp_path / "converted"
    )
    for name, parameter in streamed.model.named_parameters():
        found = streamed.storage.tensor(streamed.model, name)
        assert found.shape == parameter.shape
        assert torch.equal(found, whole.get_parameter(name)), name
