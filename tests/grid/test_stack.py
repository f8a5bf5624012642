"""Rows that were quantized piece by piece are those of the whole: every form of statistics, outliers, orders."""

from dataclasses import replace

import pytest
import torch

from roundel.errors import FormatError
from roundel.grid.outliers import Outliers
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.grid.stack import stack
from roundel.methods.rtn import make_start

SCHEMES = {
    "symmetric": Scheme(bits=4, group_size=32),
    "zero points": Scheme(bits=3, group_size=32, sym=False),
    "real zero points": Scheme(bits=3, group_size=32, sym=False, round_zero=False),
    "tiles": Scheme(bits=3, group_size=16, sym=False, round_zero=False, scale_bits=3, zero_bits=3),
    **{kind: Scheme(type=kind) for kind in ("q4_0", "q5_1", "q3_k", "q4_k")},
}


def quantized(weight: torch.Tensor, scheme: Scheme) -> QuantizedWeight:
    return make_start(weight, scheme, "search", None).quantize(weight, scheme)


def weight() -> torch.Tensor:
    return torch.randn(48, 256, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", SCHEMES)
def test_pieces_are_the_whole(name: str) -> None:
    scheme, whole = SCHEMES[name], weight()
    pieces = [quantized(rows, scheme) for rows in whole.split(16)]
    assert stack(pieces).equals(quantized(whole, scheme))


def test_outliers_keep_their_rows() -> None:
    scheme, whole = SCHEMES["symmetric"], weight()
    plain = quantized(whole, scheme)
    mask = whole.abs() > 2.5
    mask[16:32] = False  # a piece without any
    full = replace(plain, outliers=Outliers.where(mask, whole - plain.dequantize()))
    pieces = []
    for rows, own in zip(whole.split(16), mask.split(16), strict=True):
        piece = quantized(rows, scheme)
        outliers = Outliers.where(own, rows - piece.dequantize()) if own.any() else None
        pieces.append(replace(piece, outliers=outliers))
    assert pieces[1].outliers is None
    assert stack(pieces).equals(full)


def test_what_does_not_belong_together_is_refused() -> None:
    whole = weight()
    with pytest.raises(FormatError, match="one scheme"):
        stack([quantized(whole, SCHEMES["symmetric"]), quantized(whole, SCHEMES["zero points"])])
    with pytest.raises(FormatError, match="whole tiles of 16 rows"):
        stack([quantized(rows, SCHEMES["tiles"]) for rows in (whole[:8], whole[8:])])
