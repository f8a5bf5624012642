"""GLM, Cohere, mixtures, and models with blocks of several kinds."""

from typing import Any

from gguf import ExpertGatingFuncType, RopeScalingType

from roundel.formats.gguf.architectures.architecture import SILU, Architecture, Need, one_of
from roundel.formats.gguf.keys import Key, always, first, rope_of, rotary_width, setting, slides_unless
from roundel.formats.gguf.rules import Rule, gate_and_up_in_turn, named, nowhere, through

_VOCABULARY = Key("vocab_size", setting("vocab_size"))
_ROTARY = Key("rope_dimension_count", rotary_width)
_WINDOW = Key("sliding_window", setting("sliding_window"))
_NO_SCALING = Key("rope_scaling_type", always(RopeScalingType.NONE))
_EXPERT = Key("expert_feed_forward_length", setting("moe_intermediate_size", "intermediate_size"))


def _glm_rotary(config: Any) -> int:
    """Half of each head, which configs of ChatGLM's own code do not say."""
    width: int | None = getattr(config, "kv_channels", None)
    return width // 2 if width else rotary_width(config)


def _glm_base(config: Any) -> float:
    return float(rope_of(config).get("rope_theta") or 1e4 * getattr(config, "rope_ratio", 1))


_GLM_TOKENS = {"eot": "<|user|>", "unk": "<|endoftext|>"}


def _kv_heads_by_block(config: Any) -> list[int]:
    return [0 if kind == "conv" else config.num_key_value_heads for kind in config.layer_types]


OTHERS = (
    Architecture(
        "chatglm",
        ("glm", "chatglm"),
        (Rule(r"rotary_pos_emb\.inv_freq$", nowhere),),
        (
            Key("head_count_kv", setting("multi_query_group_num", "num_key_value_heads")),
            Key("layer_norm_rms_eps", setting("rms_norm_eps", "layernorm_epsilon")),
            Key("key_length", always(None)),
            Key("value_length", always(None)),
            Key("rope_dimension_count", _glm_rotary),
            Key("rope_freq_base", _glm_base),
        ),
        needs=(one_of("multi_query_attention", True),),
        special_tokens=_GLM_TOKENS,
    ),
    Architecture(
        "glm4",
        ("glm4",),
        keys=(_ROTARY,),
        needs=(SILU,),
        special_tokens=_GLM_TOKENS | {"bos": "<|endoftext|>"},
    ),
    Architecture(
        "command-r",
        ("cohere",),
        keys=(Key("logit_scale", setting("logit_scale")), _NO_SCALING),
        needs=(SILU,),
        scalings=("default",),
    ),
    Architecture(
        "cohere2",
        ("cohere2",),
        keys=(
            Key("logit_scale", setting("logit_scale")),
            _WINDOW,
            Key("sliding_window_pattern", slides_unless(4)),
            _VOCABULARY,
            _ROTARY,
            _NO_SCALING,
        ),
        needs=(SILU,),
        scalings=("default",),
    ),
    Architecture(
        "olmoe",
        ("olmoe",),
        needs=(
            SILU,
            one_of("norm_topk_prob", False),
            one_of("clip_qkv", None),
            Need(
                lambda config: config.num_key_value_heads == config.num_attention_heads,
                "as many heads of keys as of queries",
            ),
        ),
    ),
    Architecture(
        "gpt-oss",
        ("gpt_oss",),
        (
            Rule(r"\.experts\.gate_up_proj(_bias)?$", gate_and_up_in_turn),
            Rule(r"\.sinks$", named("blk.{block}.attn_sinks.weight")),
        ),
        (_WINDOW, Key("sliding_window_pattern", slides_unless(2)), _EXPERT),
    ),
    Architecture(
        "minimax-m2",
        ("minimax_m2",),
        (Rule(r"\.e_score_correction_bias$", named("blk.{block}.exp_probs_b.bias")),),
        (
            _EXPERT,
            Key("rope_dimension_count", first(setting("rotary_dim"), rotary_width)),
            Key("expert_gating_func", always(ExpertGatingFuncType.SIGMOID)),
        ),
        (SILU,),
    ),
    Architecture(
        "lfm2",
        ("lfm2",),
        (Rule(r"\.conv\.conv\.weight$", through("squeezed")),),
        (
            Key("head_count_kv", _kv_heads_by_block),
            _VOCABULARY,
            Key("shortconv_l_cache", setting("conv_L_cache")),
            Key("layer_norm_rms_eps", setting("norm_eps")),
        ),
    ),
)
