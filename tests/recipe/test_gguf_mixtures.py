"""Mixtures against what llama-quantize listed for SmolLM2-135M (30 blocks, rows of 576 and, of down, 1536)."""

import pytest

from roundel.grid.block_types import fitting
from roundel.model.roles import role_of
from roundel.recipe.mixtures import MIXTURES, Spot

BLOCKS = 30
EVERY = set(range(BLOCKS))
FAVOURED = {0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29}
ROWS = {"value": 576, "output": 576, "other": 576, "down": 1536}
# By mixture and role: the blocks that have a type; the rest has the second one.
LISTED = {
    "q2_k": {
        "value": (set(), "", "q4_0"),
        "down": (set(), "", "q3_k"),
        "output": (set(), "", "q4_0"),
        "other": (set(), "", "q4_0"),
    },
    "q3_k_m": {
        "value": ({0, 1}, "q5_1", "q5_0"),
        "down": ({0}, "q5_k", "q4_k"),
        "output": (set(), "", "q5_0"),
        "other": (set(), "", "q4_0"),
    },
    "q4_0": {role: (set(), "", "q4_0") for role in ROWS},
    "q4_k_s": {
        "value": ({0, 1, 2, 3}, "q5_1", "q5_0"),
        "down": ({0, 1, 2}, "q5_k", "q4_k"),
        "output": (set(), "", "q5_0"),
        "other": (set(), "", "q5_0"),
    },
    "q4_k_m": {
        "value": (FAVOURED, "q8_0", "q5_0"),
        "down": (FAVOURED, "q6_k", "q4_k"),
        "output": (set(), "", "q5_0"),
        "other": (set(), "", "q5_0"),
    },
    "q5_k_m": {
        "value": (FAVOURED, "q8_0", "q5_1"),
        "down": (FAVOURED, "q6_k", "q5_k"),
        "output": (set(), "", "q5_1"),
        "other": (set(), "", "q5_1"),
    },
    "q6_k": {
        "value": (set(), "", "q8_0"),
        "down": (set(), "", "q6_k"),
        "output": (set(), "", "q8_0"),
        "other": (set(), "", "q8_0"),
    },
}


@pytest.mark.parametrize("mixture", LISTED)
@pytest.mark.parametrize("role", ROWS)
def test_types_are_those_that_llama_cpp_listed(mixture: str, role: str) -> None:
    blocks, one, other = LISTED[mixture][role]
    for index in EVERY:
        chosen = MIXTURES[mixture].type_at(Spot(role, index, BLOCKS, sharing=3))
        assert fitting(chosen, ROWS[role]) == (one if index in blocks else other), index


@pytest.mark.parametrize("mixture", MIXTURES)
def test_the_embedding_of_smollm2_has_eight_bits(mixture: str) -> None:
    chosen = MIXTURES[mixture].type_outside(576, head=True)
    assert fitting(chosen, 576) == "q8_0"


def test_with_whole_super_blocks_the_head_has_six() -> None:
    assert MIXTURES["q4_k_m"].type_outside(4096, head=True) == "q6_k"
    assert MIXTURES["q4_k_m"].type_outside(4096, head=False) == "q4_k"
    assert MIXTURES["q8_0"].type_outside(4096, head=True) == "q8_0"


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.layers.3.self_attn.v_proj", "value"),
        ("model.layers.3.self_attn.o_proj", "output"),
        ("model.layers.3.self_attn.q_proj", "query"),
        ("model.layers.3.self_attn.k_proj", "key"),
        ("model.layers.3.mlp.gate_proj", "gate"),
        ("model.layers.3.mlp.up_proj", "up"),
        ("model.layers.3.mlp.experts.up_proj.7", "up"),
        ("model.layers.3.feed_forward.down_proj", "down"),
        ("transformer.h.0.mlp.c_fc", "up"),
        ("model.layers.31.mlp.down_proj", "down"),
        ("model.layers.3.mlp.experts.down_proj.7", "down"),
        ("model.language_model.layers.3.mlp.down_proj", "down"),
        ("transformer.h.0.attn.c_attn", "value"),
        ("transformer.h.0.attn.c_proj", "output"),
        ("transformer.h.0.mlp.c_proj", "down"),
        ("gpt_neox.layers.2.attention.query_key_value", "value"),
        ("gpt_neox.layers.2.mlp.dense_4h_to_h", "down"),
        ("somebody.own.blocks.0.thing", "other"),
    ],
)
def test_what_a_linear_is_to_its_block(name: str, role: str) -> None:
    assert role_of(name) == role
