import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from roundel.grid.affine import minmax_start
from roundel.grid.scheme import Scheme
from roundel.grid.search import searched_start


def heavy_tailed(seed: int, out: int = 8, width: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, width, generator=generator) ** 3
    diagonal = torch.rand(width, generator=generator) ** 4 * 10
    return weight, diagonal


def group_errors(weight: torch.Tensor, scheme: Scheme, diagonal: torch.Tensor, start) -> torch.Tensor:
    error = (start.quantize(weight, scheme).dequantize() - weight).square() * (
        diagonal / diagonal.mean() + 1e-6
    )
    return torch.stack([part.sum(1) for part in error.split(scheme.width(weight.shape[1]), 1)], 1)


@settings(max_examples=40)
@given(
    st.integers(2, 8),
    st.sampled_from([-1, 16, 40]),
    st.sampled_from([(False, "full"), (True, "full"), (True, "classic")]),
    st.integers(0, 10_000),
)
def test_no_group_is_worse_than_minmax(bits: int, group: int, sym: tuple[bool, str], seed: int) -> None:
    weight, diagonal = heavy_tailed(seed)
    scheme = Scheme(bits=bits, group_size=group, sym=sym[0], sym_range=sym[1])
    searched = group_errors(weight, scheme, diagonal, searched_start(weight, scheme, diagonal))
    plain = group_errors(weight, scheme, diagonal, minmax_start(weight, scheme))
    assert torch.all(searched <= plain * (1 + 1e-4) + 1e-9)


@pytest.mark.parametrize(("bits", "gain"), [(2, 0.6), (3, 0.8), (4, 0.9)])
def test_clipping_pays_on_heavy_tails(bits: int, gain: float) -> None:
    weight, diagonal = heavy_tailed(5, out=64)
    scheme = Scheme(bits=bits, group_size=32)
    searched = group_errors(weight, scheme, diagonal, searched_start(weight, scheme, diagonal)).sum()
    plain = group_errors(weight, scheme, diagonal, minmax_start(weight, scheme)).sum()
    assert searched < gain * plain


def test_search_comes_close_to_the_best_grid_there_is() -> None:
    weight, diagonal = heavy_tailed(3, out=4, width=16)
    scheme = Scheme(bits=2, group_size=16, scale_dtype="float32")
    importance = diagonal / diagonal.mean() + 1e-6
    found = group_errors(weight, scheme, diagonal, searched_start(weight, scheme, diagonal))[:, 0]
    for row in range(4):
        best = float("inf")
        top = float(weight[row].abs().max())
        for scale, zero in itertools.product(torch.linspace(top / 60, top, 600), range(4)):
            codes = ((weight[row] / scale).round() + zero).clamp(0, 3)
            best = min(best, float(((codes - zero) * scale - weight[row]).square() @ importance))
        assert float(found[row]) <= 1.2 * best


def test_channels_that_never_fire_do_not_break_the_search() -> None:
    weight, _ = heavy_tailed(2)
    start = searched_start(weight, Scheme(bits=3, group_size=16), torch.zeros(96))
    assert torch.all(torch.isfinite(start.scale))
