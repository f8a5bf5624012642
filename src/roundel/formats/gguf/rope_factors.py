"""Tables of rotary frequencies that llama.cpp reads from the file, and transformers computes from the config.

llama.cpp divides the frequency of every pair by a factor of the table. transformers knows the frequencies with and
without scaling, so a factor is the quotient of both: whatever the formula, there is no second one here.
"""

import math
from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from roundel.formats.gguf.keys import rope_of, rotary_width


def llama3_factors(config: Any) -> dict[str, torch.Tensor]:
    """`rope_freqs.weight [rotary / 2]` of Llama 3.1 and its kin."""
    rope = rope_of(config)
    if rope.get("rope_type") != "llama3":
        return {}
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    width = 2 * len(scaled)
    plain = 1.0 / (rope["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
    return {"rope_freqs.weight": plain / scaled}


def long_factors(config: Any) -> dict[str, torch.Tensor]:
    """`rope_factors_long.weight` and `rope_factors_short.weight` `[rotary / 2]` of Phi-3 with long contexts."""
    rope = rope_of(config)
    return {
        f"rope_factors_{length}.weight": torch.tensor(rope[f"{length}_factor"], dtype=torch.float32)
        for length in ("long", "short")
        if rope.get(f"{length}_factor")
    }


def attention_factor(config: Any) -> float | None:
    """What LongRoPE multiplies cosines and sines by (https://arxiv.org/abs/2402.13753, section 3)."""
    rope = rope_of(config)
    if not rope.get("long_factor"):
        return None
    original = rope["original_max_position_embeddings"]
    scale = config.max_position_embeddings / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def check_width(config: Any) -> bool:
    """Whether the tables have a factor for each pair of a head."""
    return all(2 * len(table) == rotary_width(config) for table in long_factors(config).values())
