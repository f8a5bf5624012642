"""Mixtures of our own: never larger than llama.cpp's of the name, no loss that a cheaper choice would not have."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roundel.grid.block_types import BLOCK_TYPES, BlockTypeName
from roundel.recipe import even
from roundel.recipe.even import even_types
from roundel.recipe.mixtures import MIXTURES, Matrix, Spot

ROLES = ("query", "key", "value", "output", "gate", "up", "down", "other")
EVEN = ("q2_k", "q3_k_m", "q4_0", "q4_k_m", "q5_k_m", "q6_k")


@st.composite
def models(draw: st.DrawFn) -> list[Matrix]:
    """Blocks of a width, an embedding, and a head where it is not tied."""
    width = 32 * draw(st.integers(1, 40))
    inner = 32 * draw(st.integers(1, 80))
    blocks, rows = draw(st.integers(1, 6)), draw(st.integers(1, 5000))
    kept = st.sampled_from([None, None, *BLOCK_TYPES])
    found = []
    for block in range(blocks):
        for role in draw(st.lists(st.sampled_from(ROLES), min_size=1, max_size=7, unique=True)):
            shape = (width, inner) if role == "down" else (inner, width)
            found.append(Matrix(f"{block}.{role}", shape, Spot(role, block, blocks), kept=draw(kept)))
    tied = draw(st.booleans())
    found.append(Matrix("embedding", (rows, width), None, head=tied, looked_up=True, kept=draw(kept)))
    if not tied:
        found.append(Matrix("head", (rows, width), None, head=True))
    return found


def size(types: dict[str, BlockTypeName], matrices: list[Matrix]) -> int:
    return sum(matrix.bytes_of(types[matrix.name]) for matrix in matrices)


def loss(types: dict[str, BlockTypeName], matrices: list[Matrix]) -> float:
    return sum(even._loss(matrix, types[matrix.name]) for matrix in matrices)


@settings(max_examples=150)
@given(matrices=models(), name=st.sampled_from(EVEN))
def test_no_larger_and_no_worse_than_the_mixture_of_the_name(matrices: list[Matrix], name: str) -> None:
    base = MIXTURES[name]
    types = even_types(base, matrices)
    usual = {matrix.name: base.type_of(matrix) for matrix in matrices}
    assert types.keys() == usual.keys()
    for matrix in matrices:
        assert matrix.shape[1] % BLOCK_TYPES[types[matrix.name]].block == 0
    left = size(usual, matrices) - size(types, matrices)
    assert left >= 0
    # What no step fits into any more is less than the largest step, so is what the relaxed optimum is better by.
    largest = max((step.gain for step in steps(matrices, name)), default=0.0)
    assert loss(types, matrices) <= loss(usual, matrices) + largest


def steps(matrices: list[Matrix], name: str) -> list[even._Step]:
    hulls = [even._hull(matrix, MIXTURES[name]) for matrix in matrices]
    return list(even._steps(matrices, hulls))


@settings(max_examples=100)
@given(matrices=models(), name=st.sampled_from(EVEN))
def test_each_step_gains_less_for_a_byte_than_the_one_before(matrices: list[Matrix], name: str) -> None:
    for matrix in matrices:
        rates = [step.gain / step.bytes for step in steps([matrix], name)]
        assert all(rate > 0 for rate in rates)
        assert rates == sorted(rates, reverse=True)


def test_what_has_a_type_already_is_kept_where_that_costs_nothing() -> None:
    base = MIXTURES["q4_0"]
    blocks = [Matrix(f"{i}.up", (512, 512), Spot("up", i, 4), kept="q4_1") for i in range(4)]
    embedding = Matrix("embedding", (30000, 512), None, head=True, looked_up=True)
    types = even_types(base, [*blocks, embedding])
    assert [types[block.name] for block in blocks] == ["q4_1"] * 4


@pytest.mark.parametrize("name", EVEN)
def test_a_small_model_takes_bytes_from_its_embedding(name: str) -> None:
    """The shapes of SmolLM2-135M: with the bytes of llama.cpp's mixture the blocks have more bits than there."""
    rows = {"query": (576, 576), "key": (192, 576), "value": (192, 576), "output": (576, 576)}
    rows |= {"gate": (1536, 576), "up": (1536, 576), "down": (576, 1536)}
    blocks = [Matrix(f"{i}.{role}", rows[role], Spot(role, i, 30, 3)) for i in range(30) for role in rows]
    embedding = Matrix("embedding", (49152, 576), None, head=True, looked_up=True)
    base, types = MIXTURES[name], even_types(MIXTURES[name], [*blocks, embedding])
    usual = {matrix.name: base.type_of(matrix) for matrix in blocks}
    assert size(types, [*blocks, embedding]) <= size(usual, blocks) + embedding.bytes_of("q8_0")
    if name != "q6_k":
        assert BLOCK_TYPES[types["embedding"]].bits == 5
        assert size(types, blocks) > size(usual, blocks)
