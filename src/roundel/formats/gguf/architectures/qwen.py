"""Qwen 2 and 3, with and without experts."""

from roundel.formats.gguf.architectures.architecture import SILU, Architecture, one_of
from roundel.formats.gguf.keys import Key, always, head_width, setting

_EXPERT = Key("expert_feed_forward_length", setting("moe_intermediate_size"))

QWEN = (
    Architecture(
        "qwen",
        ("qwen",),
        keys=(
            Key("rope_dimension_count", head_width),
            Key("rope_freq_base", setting("rotary_emb_base")),
            Key("layer_norm_rms_eps", setting("layer_norm_epsilon")),
            Key("layer_norm_eps", always(None)),
        ),
    ),
    Architecture("qwen2", ("qwen2",), needs=(SILU,)),
    Architecture(
        "qwen2moe",
        ("qwen2_moe",),
        keys=(
            _EXPERT,
            Key("expert_shared_feed_forward_length", setting("shared_expert_intermediate_size")),
        ),
        needs=(SILU, one_of("norm_topk_prob", False)),
    ),
    Architecture("qwen3", ("qwen3",), needs=(SILU,)),
    Architecture("qwen3moe", ("qwen3_moe",), keys=(_EXPERT,), needs=(SILU, one_of("norm_topk_prob", True))),
)
