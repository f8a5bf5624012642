"""What is finite: the law is torch's own, for every type that a model may be stored in."""

import pytest
import torch

from roundel.system.finite import all_finite

TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("broken", [None, float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 17, 99])
def test_it_says_what_isfinite_says(dtype: torch.dtype, broken: float | None, place: int) -> None:
    tensor = torch.linspace(-300, 300, 100).to(dtype)
    if broken is not None:
        tensor[place] = broken
    for shape in ((100,), (4, 25), (2, 5, 10)):
        seen = tensor.view(shape)
        assert all_finite(seen) == bool(seen.float().isfinite().all())
        assert all_finite(seen.transpose(0, -1)) == all_finite(seen)


@pytest.mark.parametrize("dtype", TYPES[:4])
def test_the_largest_numbers_are_finite(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    assert all_finite(torch.tensor([largest, -largest, largest], dtype=dtype))


def test_nothing_and_whole_numbers_are_finite() -> None:
    assert all_finite(torch.empty(0, 3))
    assert all_finite(torch.tensor([1, 2]))
    assert all_finite(torch.tensor([True, False]))
