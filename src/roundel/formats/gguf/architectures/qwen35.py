"""Qwen 3.5: linear attention in most blocks, whose heads of values the file has in another order.

The model has all heads of values of a head of keys together, the file has them in turn: the first of every head of
keys, then the second. Rows can be moved like that; `out_proj` reads the values, so its columns would have to move, and
columns are what integers have in groups. With as many heads of values as of keys both orders are the same.
"""

from typing import Any

import torch

from roundel.errors import FormatError
from roundel.formats.gguf.architectures.architecture import SILU, Architecture, Need
from roundel.formats.gguf.keys import Key, rope_of, rotary_width, setting
from roundel.formats.gguf.layout import Place
from roundel.formats.gguf.rules import Named, Placing, Rule, as_it_is, plus_one


def _per_key(config: Any) -> int:
    return int(config.linear_num_value_heads // config.linear_num_key_heads)


def _in_turn(config: Any, width: int) -> torch.Tensor:
    """Rows of the values: `width` for each head."""
    keys, values = config.linear_num_key_heads, _per_key(config)
    return torch.arange(keys * values * width).view(keys, values, width).transpose(0, 1).flatten()


def _values(file: str, *, per_head: bool = False, behind_keys: bool = False, change: str = "") -> Placing:
    """A tensor with rows for the values, alone or behind those of queries and keys."""

    def places(tensor: Named) -> list[Place]:
        config = tensor.config
        rows = _in_turn(config, 1 if per_head else config.linear_value_head_dim)
        first = 2 * config.linear_num_key_heads * config.linear_key_head_dim if behind_keys else 0
        order = torch.cat([torch.arange(first), first + rows])
        return [Place(file.format(block=tensor.block), order, through=change)]

    return places


def _output(tensor: Named) -> list[Place]:
    if _per_key(tensor.config) > 1:
        raise FormatError(
            f"{tensor.name} would need its columns in another order in a GGUF file, because there are "
            f"{tensor.config.linear_num_value_heads} heads of values for {tensor.config.linear_num_key_heads} of keys: "
            "Roundel moves whole rows only, so as many of both are expected; take another --format"
        )
    return as_it_is(tensor)


_RULES = (
    Rule(r"\.linear_attn\.norm\.weight$", as_it_is),
    Rule(r"norm\.weight$", plus_one),
    Rule(r"\.linear_attn\.A_log$", _values("blk.{block}.ssm_a", per_head=True, change="minus exp")),
    Rule(r"\.linear_attn\.dt_bias$", _values("blk.{block}.ssm_dt.bias", per_head=True)),
    Rule(r"\.linear_attn\.in_proj_a\.weight$", _values("blk.{block}.ssm_alpha.weight", per_head=True)),
    Rule(r"\.linear_attn\.in_proj_b\.weight$", _values("blk.{block}.ssm_beta.weight", per_head=True)),
    Rule(r"\.linear_attn\.in_proj_z\.weight$", _values("blk.{block}.attn_gate.weight")),
    Rule(r"\.linear_attn\.in_proj_qkv\.weight$", _values("blk.{block}.attn_qkv.weight", behind_keys=True)),
    Rule(
        r"\.linear_attn\.conv1d\.weight$",
        _values("blk.{block}.ssm_conv1d.weight", behind_keys=True, change="squeezed"),
    ),
    Rule(r"\.linear_attn\.out_proj\.weight$", _output),
)


def _sections(config: Any) -> list[int]:
    """Pairs for each axis of a picture; of texts, whose tokens are in one row, all have the same angle."""
    found = [*rope_of(config).get("mrope_section", (11, 11, 10)), 0, 0, 0, 0]
    return found[:4]


def _interval(config: Any) -> int:
    """Every how many blocks there is one of full attention."""
    return list(config.layer_types).index("full_attention") + 1


def _regular(config: Any) -> bool:
    kinds = [kind == "full_attention" for kind in config.layer_types]
    return any(kinds) and kinds == [(n + 1) % _interval(config) == 0 for n in range(len(kinds))]


_KEYS = (
    Key("rope_dimension_count", rotary_width),
    Key("rope_dimension_sections", _sections),
    Key("ssm_conv_kernel", setting("linear_conv_kernel_dim")),
    Key("ssm_state_size", setting("linear_key_head_dim")),
    Key("ssm_group_count", setting("linear_num_key_heads")),
    Key("ssm_time_step_rank", setting("linear_num_value_heads")),
    Key("ssm_inner_size", lambda config: config.linear_value_head_dim * config.linear_num_value_heads),
    Key("full_attention_interval", _interval),
)
_NEEDS = (SILU, Need(_regular, "a block of full attention at regular intervals"))
_SCALINGS = ("default", "default with mrope_section")

QWEN35 = (
    Architecture("qwen35", ("qwen3_5_text",), _RULES, _KEYS, _NEEDS, scalings=_SCALINGS),
    Architecture(
        "qwen35moe",
        ("qwen3_5_moe_text",),
        _RULES,
        (
            *_KEYS,
            Key("expert_feed_forward_length", setting("moe_intermediate_size")),
            Key("expert_shared_feed_forward_length", setting("shared_expert_intermediate_size")),
        ),
        _NEEDS,
        scalings=_SCALINGS,
    ),
)
