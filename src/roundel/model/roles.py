"""What a Linear is to its block: queries, values, down projection. By its name, as the `gguf` package knows
the names of all architectures."""

import re
from functools import cache
from typing import Any

from roundel.model.text_path import text_model

# A name of both has the first's role: the package lists `feed_forward.down_proj` among the shared experts' up.
_OF_TENSOR = (
    {
        "ATTN_V": "value",
        "ATTN_K": "key",
        "ATTN_QKV": "value",
        "ATTN_OUT": "output",
        "FFN_DOWN": "down",
        "FFN_DOWN_EXP": "down",
        "FFN_DOWN_SHEXP": "down",
    },
    {
        "ATTN_Q": "query",
        "FFN_GATE": "gate",
        "FFN_GATE_EXP": "gate",
        "FFN_GATE_SHEXP": "gate",
        "FFN_UP": "up",
        "FFN_UP_EXP": "up",
        "FFN_UP_SHEXP": "up",
    },
)


def role_of(name: str) -> str:
    """`query`, `key`, `value`, `output`, `gate`, `up`, `down`, or `other`; a fused one is `value` or `up`."""
    inside = re.sub(r"^.*?\.\d+\.|\.\d+$", "", name)  # without the block, and an expert's number
    return _roles().get(re.sub(r"\.\d+\.", ".{xid}.", inside), "other")


@cache
def _roles() -> dict[str, str]:
    """By the names inside of a block."""
    first, second = map(_unambiguous, _OF_TENSOR)
    return {**second, **first}


def _unambiguous(of_tensor: dict[str, str]) -> dict[str, str]:
    """Names that have one of these roles only."""
    from gguf import MODEL_TENSOR, TensorNameMap  # half a second

    found: dict[str, str] = {}
    twice = set()
    for tensor, role in of_tensor.items():
        for template in TensorNameMap.block_mappings_cfg.get(MODEL_TENSOR[tensor], ()):
            inside = template.partition("{bid}.")[2]
            if found.setdefault(inside, role) != role:
                twice.add(inside)
    return {inside: role for inside, role in found.items() if inside not in twice}


def heads_sharing(model: Any) -> int:
    """Query heads for each head of keys and values."""
    config = text_model(model).config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 1
    return int(heads) // int(getattr(config, "num_key_value_heads", None) or heads)


def experts_of(model: Any) -> int:
    """Experts of a layer; 1 where there are none."""
    config = text_model(model).config.get_text_config()
    for key in ("num_local_experts", "num_experts", "n_routed_experts"):
        found = getattr(config, key, None)
        if isinstance(found, int) and found > 0:
            return found
    return 1
