"""Gemma: norms that multiply by one plus their weight, sliding blocks in between, tied embeddings."""

from typing import Any

from roundel.formats.gguf.architectures.architecture import Architecture, Need, one_of
from roundel.formats.gguf.keys import Key, head_width, setting, slides, slides_unless
from roundel.formats.gguf.rules import Rule, plus_one

# The number of blocks by which llama.cpp knows the models of 27 billion parameters, which scale otherwise.
_LARGEST = {"gemma2": 46, "gemma3_text": 62}


def _scale(config: Any) -> bool:
    large = config.num_hidden_layers == _LARGEST.get(config.model_type)
    expected = config.hidden_size // config.num_attention_heads if large else head_width(config)
    return bool(config.query_pre_attn_scalar == expected)


def _window(config: Any) -> int | None:
    return config.sliding_window if any(slides(config) or [True]) else None


_PLUS_ONE = (Rule(r"norm\.weight$", plus_one),)
_GELU = (
    one_of("hidden_activation", "gelu_pytorch_tanh", None),
    one_of("hidden_act", "gelu_pytorch_tanh", "gelu", None),
)
_SCALE = Need(_scale, "queries scaled by the width of a head (query_pre_attn_scalar)")

GEMMA = (
    Architecture("gemma", ("gemma",), _PLUS_ONE, needs=_GELU),
    Architecture(
        "gemma2",
        ("gemma2",),
        _PLUS_ONE,
        (
            Key("attn_logit_softcapping", setting("attn_logit_softcapping")),
            Key("final_logit_softcapping", setting("final_logit_softcapping")),
            Key("sliding_window", setting("sliding_window")),
            Key("sliding_window_pattern", slides_unless(2)),
        ),
        (*_GELU, _SCALE),
    ),
    Architecture(
        "gemma3",
        ("gemma3_text",),
        _PLUS_ONE,
        (
            Key("final_logit_softcapping", setting("final_logit_softcapping")),
            Key("sliding_window", _window),
            Key("sliding_window_pattern", slides_unless(6)),
        ),
        (*_GELU, _SCALE, one_of("attn_logit_softcapping", None)),
    ),
)
