import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roundel.errors import RecipeError
from roundel.grid.budget import outliers_within, scheme_within
from roundel.grid.joint import joint_start
from roundel.grid.outliers import Outliers
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme

TWO_LEVEL = Scheme(bits=3, group_size=16, round_zero=False, scale_bits=4, zero_bits=4, tile_rows=16)


def with_outliers(shape: tuple[int, int], count: int, scheme: Scheme) -> QuantizedWeight:
    """Outliers spread evenly, as far from a full segment as can be."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[torch.linspace(0, weight.numel() - 1, max(count, 1)).long()[:count]] = True
    plain = joint_start(weight, scheme, None, search=False).quantize(weight, scheme)
    outliers = Outliers.where(mask.view(shape), weight) if count else None
    return QuantizedWeight(plain.codes, plain.scale, plain.zero, scheme, outliers)


@given(st.integers(1, 40), st.integers(16, 700), st.floats(0.0, 2.0))
def test_a_budget_is_kept_and_used_up(out: int, width: int, extra: float) -> None:
    shape = (out, width)
    target = TWO_LEVEL.stored_bits(*shape) / (out * width) + extra
    count = outliers_within(target, TWO_LEVEL, shape, permuted=False)
    assert with_outliers(shape, count, TWO_LEVEL).bits_per_weight() <= target
    # The target in bits is rounded down, so half a bit of slack.
    assert with_outliers(shape, count + 1, TWO_LEVEL).stored_bits() > target * out * width - 0.5


def test_the_order_of_columns_is_counted() -> None:
    with_order, without = (outliers_within(4, TWO_LEVEL, (64, 512), permuted=p) for p in (True, False))
    assert with_order < without


def test_a_second_level_that_is_too_large_gives_way_to_the_finest_that_fits() -> None:
    shape = (64, 256)
    assert scheme_within(3.76, TWO_LEVEL, "x", shape, permuted=False) is TWO_LEVEL
    smaller = scheme_within(3.7, TWO_LEVEL, "x", shape, permuted=False)
    assert (smaller.scale_bits, smaller.zero_bits, smaller.tile_rows) == (4, 4, 32)
    smallest = scheme_within(3.5, TWO_LEVEL, "x", shape, permuted=False)
    assert smallest.stored_bits(*shape) <= 3.5 * 64 * 256


def test_a_budget_below_everything_names_the_least() -> None:
    with pytest.raises(
        RecipeError, match=r"up_proj takes at least 3\.\d+ bits per weight .* target_bits is 3:"
    ):
        scheme_within(3.0, TWO_LEVEL, "up_proj", (64, 256), permuted=False)


def test_one_level_grids_have_nothing_to_give() -> None:
    with pytest.raises(RecipeError, match=r"takes at least 3\.297 bits"):
        scheme_within(3.2, Scheme(bits=3, group_size=64), "up_proj", (64, 256), permuted=False)


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        (Scheme(bits=3, group_size=16, round_zero=False, scale_bits=3, zero_bits=3), 3.625),
        (Scheme(bits=4, group_size=16, round_zero=False, scale_bits=3, zero_bits=3), 4.625),
        (Scheme(bits=4, group_size=128), 4 + 20 / 128),
        (Scheme(bits=4, group_size=128, sym=True), 4 + 16 / 128),
        (Scheme(bits=4, group_size=16, round_zero=False), 6.0),
    ],
)
def test_bits_as_the_paper_counts_them(scheme: Scheme, bits: float) -> None:
    assert scheme.paper_bits(1024) == bits
    assert scheme.stored_bits(64, 1024) == bits * 64 * 1024
