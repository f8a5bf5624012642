"""The products as torch operators, with the shapes of what they give: `torch.compile` and `torch.export` trace through.

    roundel::linear    x [..., columns] -> [..., rows] of its type
    roundel::lookup    rows [...] -> [..., columns] float32

A weight comes as the list of its parts, their names joined by spaces, and its layout as text.
"""

import torch

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
    return Product(PackedWeight(layout_of(layout), dict(zip(names.split(), parts, strict=True))))
