import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roundel.errors import FormatError
from roundel.grid.outliers import Outliers


def make(rows: int, columns: int, count: int, seed: int = 0) -> tuple[Outliers, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(rows * columns, dtype=torch.bool)
    mask[torch.randperm(rows * columns, generator=generator)[:count]] = True
    mask = mask.view(rows, columns)
    values = torch.randn(rows, columns, generator=generator).half().float()
    return Outliers.where(mask, values), values * mask


@given(st.integers(1, 9), st.integers(1, 600), st.floats(0, 1), st.integers(0, 99))
def test_they_land_where_they_came_from(rows: int, columns: int, share: float, seed: int) -> None:
    outliers, dense = make(rows, columns, int(share * rows * columns), seed)
    assert torch.equal(outliers.add_to(torch.zeros(rows, columns)), dense)
    assert outliers.count == int((outliers.counts).sum())
    assert torch.equal(outliers.segment_counts().sum(1), outliers.counts.long())


def test_they_are_added_to_what_is_there() -> None:
    outliers, dense = make(3, 7, 5)
    assert torch.allclose(outliers.add_to(torch.ones(3, 7)), 1 + dense)


@pytest.mark.parametrize(
    ("count", "narrow", "bits"), [(2, False, 2 * 32 + 4 * 16), (40, True, 40 * 24 + 4 * 3 * 8)]
)
def test_the_smaller_form_is_stored(count: int, narrow: bool, bits: int) -> None:
    outliers, _ = make(4, 600, count)
    assert outliers.narrow() is narrow
    assert outliers.stored_bits() == bits


def test_a_full_segment_takes_the_wide_form() -> None:
    outliers, _ = make(2, 300, 600)
    assert not outliers.narrow()
    with pytest.raises(FormatError, match="fewer outliers are expected"):
        make(1, 2**16, 2**16)[0].stored_bits()


def test_values_beyond_sixteen_bits_are_cut() -> None:
    outliers = Outliers.where(torch.ones(1, 2, dtype=torch.bool), torch.tensor([[1e6, -1e6]]))
    assert outliers.values.tolist() == [65504.0, -65504.0]
