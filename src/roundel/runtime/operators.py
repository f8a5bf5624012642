"""The products as torch operators, with the shapes of what they give: `torch.compile` and `torch.export` trace through.

    roundel::linear    x [..., columns] -> [..., rows] of its type
    roundel::lookup    rows [...] -> [..., columns] float32

A weight comes as the list of its parts, their names joined by spaces, and its layout as text.
"""

from collections.abc import MutableMapping

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from roundel.runtime.layout import layout_of
from roundel.runtime.packed_weight import PackedWeight
from roundel.runtime.product import Product


@torch.library.custom_op("roundel::linear", mutates_args=())
def linear(x: torch.Tensor, parts: list[torch.Tensor], names: str, layout: str, mode: str) -> torch.Tensor:
    """`x W^T` with a packed weight."""
    return _product(parts, names, layout).multiply(x, "fast" if mode == "fast" else "exact")


@linear.register_fake
def _(x: torch.Tensor, parts: list[torch.Tensor], names: str, layout: str, mode: str) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], layout_of(layout).rows)


@torch.library.custom_op("roundel::lookup", mutates_args=())
def lookup(rows: torch.Tensor, parts: list[torch.Tensor], names: str, layout: str) -> torch.Tensor:
    """Rows of a packed weight."""
    return _product(parts, names, layout).lookup(rows)


@lookup.register_fake
def _(rows: torch.Tensor, parts: list[torch.Tensor], names: str, layout: str) -> torch.Tensor:
    return parts[0].new_empty(*rows.shape, layout_of(layout).columns, dtype=torch.float32)


def _product(parts: list[torch.Tensor], names: str, layout: str) -> Product:
    """Of these parts: kept as long as the first of them is, and stays where it is."""
    codes = parts[0]
    kept, place = _PRODUCTS.get(codes, (None, 0))
    if kept is None or place != codes.data_ptr():
        # Other objects on the same memory: a product that held its own key would keep it for ever.
        held = {name: part.detach() for name, part in zip(names.split(), parts, strict=True)}
        kept = Product(PackedWeight(layout_of(layout), held))
        _PRODUCTS[codes] = (kept, codes.data_ptr())
    return kept


_PRODUCTS: MutableMapping[torch.Tensor, tuple[Product, int]] = WeakTensorKeyDictionary()
