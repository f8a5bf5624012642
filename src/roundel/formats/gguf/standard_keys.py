"""The metadata that most architectures share: sizes, heads, norms, rotary embeddings, experts."""

from typing import Any

from gguf import ExpertGatingFuncType, RopeScalingType

from roundel.formats.gguf.keys import Key, Value, blocks_of, rope_of, setting

_SCALINGS = {
    "linear": RopeScalingType.LINEAR,
    "yarn": RopeScalingType.YARN,
    "longrope": RopeScalingType.LONGROPE,
    "su": RopeScalingType.LONGROPE,
}
_GATES = {"sigmoid": ExpertGatingFuncType.SIGMOID, "softmax": ExpertGatingFuncType.SOFTMAX}


def _rope(name: str, kind: str = "full_attention") -> Value:
    return lambda config: rope_of(config, kind).get(name)


def _of_type(name: str, *types: str) -> Value:
    """A setting of the rotary embedding that counts for some types of scaling only."""
    return lambda config: rope_of(config).get(name) if rope_of(config).get("rope_type") in types else None


def _scaling(config: Any) -> RopeScalingType | None:
    return _SCALINGS.get(rope_of(config).get("rope_type", ""))


def _gate(config: Any) -> ExpertGatingFuncType | None:
    return _GATES.get(getattr(config, "scoring_func", None) or "")


STANDARD = (
    Key("block_count", blocks_of),
    Key("context_length", setting("max_position_embeddings", "max_seq_len", "seq_length")),
    Key("embedding_length", setting("hidden_size")),
    Key("feed_forward_length", setting("intermediate_size", "ffn_hidden_size")),
    Key("head_count", setting("num_attention_heads")),
    Key("head_count_kv", setting("num_key_value_heads")),
    Key("key_length", setting("head_dim")),
    Key("value_length", setting("head_dim")),
    Key("layer_norm_rms_eps", setting("rms_norm_eps")),
    Key("layer_norm_eps", setting("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")),
    Key("rope_freq_base", _rope("rope_theta")),
    Key("rope_freq_base_swa", _rope("rope_theta", "sliding_attention")),
    Key("rope_scaling_type", _scaling),
    Key("rope_scaling_factor", _of_type("factor", "linear", "yarn")),
    Key("rope_scaling_orig_ctx_len", _of_type("original_max_position_embeddings", "yarn")),
    Key("rope_scaling_yarn_ext_factor", _of_type("extrapolation_factor", "yarn")),
    Key("rope_scaling_yarn_attn_factor", _of_type("attention_factor", "yarn")),
    Key("rope_scaling_yarn_beta_fast", _of_type("beta_fast", "yarn")),
    Key("rope_scaling_yarn_beta_slow", _of_type("beta_slow", "yarn")),
    Key("expert_count", setting("num_local_experts", "num_experts", "n_routed_experts")),
    Key("expert_used_count", setting("num_experts_per_tok")),
    Key("expert_group_count", setting("n_group")),
    Key("expert_group_used_count", setting("topk_group")),
    Key("expert_gating_func", _gate),
)
"""In the order in which a file has them; an architecture's own keys replace those of the same name."""


def keys_with(own: tuple[Key, ...]) -> tuple[Key, ...]:
    """The standard keys, and an architecture's own in the place of those of the same name."""
    named = {key.name: key for key in (*STANDARD, *own)}
    return tuple(named.values())
