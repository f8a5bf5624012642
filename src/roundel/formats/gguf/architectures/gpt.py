"""The kin of GPT: layer norms, MLPs without a gate, queries, keys and values in one matrix."""

from typing import Any

from roundel.formats.gguf.architectures.architecture import Architecture, Need, one_of
from roundel.formats.gguf.keys import Key, always, rotary_width, setting, times
from roundel.formats.gguf.rules import Rule, fused, nowhere, of_head, plus_one, through

_QKV = r"query_key_value\.(weight|bias)$"
_FOUR_TIMES = Key("feed_forward_length", times(4, setting("hidden_size")))
_EACH_HEAD = Rule(_QKV, fused(lambda config: config.num_attention_heads, lambda config: (1, 1, 1)))


def _inner(config: Any) -> int:
    inner: int | None = getattr(config, "n_inner", None)
    return inner or 4 * config.hidden_size


def falcon_groups(config: Any) -> int:
    """How many keys there are; each is of as many queries."""
    if config.new_decoder_architecture:
        return int(config.num_kv_heads)
    return 1 if config.multi_query else int(config.num_attention_heads)


def _falcon_group(config: Any) -> tuple[int, int, int]:
    return config.num_attention_heads // falcon_groups(config), 1, 1


def _alibi(config: Any) -> float:
    return float(config.attn_config.alibi_bias_max) if config.attn_config.alibi else 0.0


GPT = (
    Architecture(
        "gpt2",
        ("gpt2",),
        (Rule(r"\.attn\.(bias|masked_bias)$", nowhere),),
        (Key("feed_forward_length", _inner), Key("head_count_kv", always(None))),
        (
            one_of("activation_function", "gelu_new", "gelu_pytorch_tanh"),
            one_of("scale_attn_weights", True),
            one_of("scale_attn_by_inverse_layer_idx", False),
            one_of("add_cross_attention", False),
        ),
    ),
    Architecture(
        "bloom",
        ("bloom",),
        (_EACH_HEAD,),
        (
            Key("context_length", setting("seq_length", "hidden_size")),
            _FOUR_TIMES,
            Key("head_count_kv", setting("num_attention_heads")),
        ),
        (one_of("apply_residual_connection_post_layernorm", False),),
    ),
    Architecture(
        "falcon",
        ("falcon",),
        (Rule(_QKV, fused(falcon_groups, _falcon_group)),),
        (
            Key("context_length", setting("max_position_embeddings")),
            Key("tensor_data_layout", always("jploski")),
            Key("feed_forward_length", setting("ffn_hidden_size")),
            Key("head_count_kv", falcon_groups),
        ),
        (
            one_of("alibi", False),
            one_of("activation", "gelu"),
            Need(
                lambda config: config.new_decoder_architecture or config.parallel_attn,
                "attention and MLP side by side",
            ),
        ),
    ),
    Architecture(
        "mpt",
        ("mpt",),
        keys=(
            Key("feed_forward_length", lambda config: config.expansion_ratio * config.hidden_size),
            Key("head_count_kv", lambda config: getattr(config.attn_config, "kv_n_heads", None)),
            Key("layer_norm_eps", setting("layer_norm_epsilon")),
            Key("clamp_kqv", lambda config: config.attn_config.clip_qkv),
            Key("max_alibi_bias", _alibi),
        ),
    ),
    Architecture(
        "gptneox",
        ("gpt_neox",),
        (_EACH_HEAD, Rule(r"\.attention\.(bias|masked_bias)$|\.rotary_emb\.inv_freq$", nowhere)),
        (
            Key("head_count_kv", always(None)),
            Key("rope_dimension_count", rotary_width),
            Key("parallel_residual", setting("use_parallel_residual")),
        ),
        (one_of("hidden_act", "gelu", "gelu_fast", "gelu_new"),),
    ),
    Architecture(
        "starcoder",
        ("gpt_bigcode",),
        keys=(Key("feed_forward_length", _inner), Key("head_count_kv", always(1))),
        needs=(
            one_of("multi_query", True),
            one_of("activation_function", "gelu_pytorch_tanh", "gelu_new", "gelu"),
        ),
    ),
    Architecture(
        "starcoder2",
        ("starcoder2",),
        needs=(one_of("hidden_act", "gelu_pytorch_tanh", "gelu"),),
    ),
    Architecture(
        "phi2",
        ("phi",),
        keys=(
            Key("head_count_kv", setting("num_key_value_heads")),
            Key("rope_dimension_count", rotary_width),
        ),
        needs=(one_of("hidden_act", "gelu_new"), one_of("qk_layernorm", False)),
    ),
    Architecture(
        "stablelm",
        ("stablelm",),
        (
            Rule(r"\.q_layernorm\.norms\.\d+\.weight$", of_head("blk.{block}.attn_q_norm.weight")),
            Rule(r"\.k_layernorm\.norms\.\d+\.weight$", of_head("blk.{block}.attn_k_norm.weight")),
        ),
        (
            Key("rope_dimension_count", rotary_width),
            Key("parallel_residual", setting("use_parallel_residual")),
        ),
        (one_of("hidden_act", "silu"),),
    ),
    Architecture(
        "nemotron",
        ("nemotron",),
        (Rule(r"norm\.weight$", plus_one),),
        (
            Key("vocab_size", setting("vocab_size")),
            Key("layer_norm_eps", setting("norm_eps")),
            Key("layer_norm_rms_eps", setting("norm_eps")),
            Key("rope_dimension_count", rotary_width),
        ),
        (one_of("hidden_act", "relu2"),),
    ),
)

MAMBA = Architecture(
    "mamba",
    ("mamba",),
    (
        Rule(r"\.conv1d\.weight$", through("squeezed")),
        Rule(r"\.A_log$", through("minus exp")),
    ),
    (
        Key("context_length", always(2**20)),
        Key("feed_forward_length", always(0)),
        Key("head_count", always(0)),
        Key("head_count_kv", always(None)),
        Key("layer_norm_eps", always(None)),
        Key("layer_norm_rms_eps", setting("layer_norm_epsilon")),
        Key("ssm_conv_kernel", setting("conv_kernel")),
        Key("ssm_inner_size", setting("intermediate_size")),
        Key("ssm_state_size", setting("state_size")),
        Key("ssm_time_step_rank", setting("time_step_rank")),
        Key("ssm_dt_b_c_rms", always(False)),
    ),
)
