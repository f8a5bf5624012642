"""Small models that see or hear, of transformers' own classes with random weights, and what runs them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig

import roundel

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
