"""Modules with packed weights, in the place of a model's Linears and of its embedding."""

from typing import Any

import torch
from torch import nn

from roundel.activations.attach import CodesOf
from roundel.activations.rounding import Codes
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.runtime import operators
from roundel.runtime.layout import describe
from roundel.runtime.modes import Mode
from roundel.runtime.packed_weight import PackedWeight
from roundel.runtime.product import Product


class Packed(nn.Module):
    """Holds a packed weight as buffers, whose names are those of its parts with `_` for the dot.

    Args:
        weight: its parts; on the meta device, where they come later.
        dtype: of the weights, as the model has it.

    Attributes:
        dtype: the same, or what the model was converted to since.
        mode: how products are computed (product.py).
        stands_for_transposed: the module in whose place it is stored `[in, out]`.
    """

    stands_for_transposed = False

    def __init__(self, weight: PackedWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self.layout = weight.layout
        self.dtype = dtype
        self.mode: Mode = "exact"
        self._names = {name.replace(".", "_"): name for name in weight.parts}
        self._text = describe(weight.layout)
        self._product: Product | None = None
        self._place = (0, 0)
        for buffer, name in self._names.items():
            self.register_buffer(buffer, weight.parts[name])

    @property
    def packed(self) -> PackedWeight:
        """The weight as it is held now."""
        return PackedWeight(self.layout, {name: self.get_buffer(b) for b, name in self._names.items()})

    @property
    def part_names(self) -> list[str]:
        """Of the buffers that hold the parts."""
        return list(self._names)

    @property
    def weight(self) -> torch.Tensor:
        """The weight decoded, `[rows, columns]`: a copy, made anew each time."""
        return self.packed.unpack().dequantize(self.dtype)

    def integers(self) -> QuantizedWeight:
        """The integers that it holds."""
        return self.packed.unpack()

    @property
    def product(self) -> Product:
        """What multiplies by it, where its parts are now."""
        codes: Any = self._buffers["codes"]
        # Another module that shares the parts may have moved them.
        if self._product is None or self._place != (id(codes), codes.data_ptr()):
            self._product, self._place = Product(self.packed), (id(codes), codes.data_ptr())
        return self._product

    def _apply(self, fn: Any, recurse: bool = True) -> "Packed":
        """Moves between devices; types stay, whatever the model is converted to: they say what the numbers are.

        As torch moves parameters, so are parts moved in their place: modules that share them share them after it.
        """
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.get_buffer("codes").device)).dtype
        for buffer in self._names:
            found = self.get_buffer(buffer)
            moved = fn(found)
            moved = moved if moved.dtype == found.dtype else found.to(moved.device)
            if moved is not found and _movable(found, moved):
                found.data = moved
            else:
                self._buffers[buffer] = moved
        kept = {name: self._buffers.pop(name) for name in self._names}
        super()._apply(fn, recurse)
        self._buffers.update(kept)
        self._product = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_product": None}  # it holds addresses

    def _operands(self) -> tuple[list[torch.Tensor], str, str]:
        parts = self.packed.parts
        return list(parts.values()), " ".join(parts), self._text

    def extra_repr(self) -> str:
        """For `print(model)`."""
        layout = self.layout
        group = layout.scheme.group_size
        return (
            f"in_features={layout.columns}, out_features={layout.rows}, bits={layout.scheme.bits}, "
            f"group_size={group}, mode={self.mode}"
        )


def _movable(found: torch.Tensor, moved: torch.Tensor) -> bool:
    """Whether a tensor may become another one and stay the same object, as torch asks it of parameters."""
    return bool(torch._has_compatible_shallow_copy_type(found, moved)) and not found.is_inference()


class PackedLinear(Packed):
    """A Linear (or GPT-2's Conv1D) whose weight is packed.

    Args:
        weight: `[out, in]`.
        dtype: of the model.
        bias: `[out]`, or None.
    """

    def __init__(self, weight: PackedWeight, dtype: torch.dtype, bias: torch.Tensor | None = None) -> None:
        super().__init__(weight, dtype)
        self.in_features, self.out_features = weight.layout.columns, weight.layout.rows
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._codes_of: CodesOf | None = None

    def take_codes(self, source: CodesOf | None) -> None:
        """Multiply by the integers that `source` gives of an input, where it gives some; None: by the input."""
        self._codes_of = source

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` to `[..., out]`, in the type of x."""
        codes = None if self._codes_of is None else self._codes_of(x)
        if codes is not None and torch.compiler.is_compiling():
            x, codes = codes.dequantize(x.dtype), None
        if codes is not None:
            y = self._of_integers(codes).to(x.dtype)
        elif torch.compiler.is_compiling():
            y = operators.linear(x, *self._operands(), self.mode)
        else:
            y = self.product.multiply(x, self.mode)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _of_integers(self, codes: Codes) -> torch.Tensor:
        """`[..., out]` float32."""
        rows = codes.codes.reshape(-1, self.in_features)
        y = self.product.multiply_integers(rows, codes.scale.reshape(-1), codes.zero.reshape(-1))
        return y.view(*codes.codes.shape[:-1], -1)


class PackedEmbedding(Packed):
    """An input embedding whose weight is packed.

    Args:
        weight: `[tokens, width]`.
        dtype: of what it gives.
        scale: that every row is multiplied by, as Gemma's are; None: 1.
    """

    def __init__(self, weight: PackedWeight, dtype: torch.dtype, scale: torch.Tensor | None = None) -> None:
        super().__init__(weight, dtype)
        self.num_embeddings, self.embedding_dim = weight.layout.rows, weight.layout.columns
        self.embed_scale: torch.Tensor | None
        self.register_buffer("embed_scale", scale, persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """`[...]` token ids to `[..., width]`."""
        if torch.compiler.is_compiling():
            rows: torch.Tensor = operators.lookup(ids, *self._operands())
        else:
            rows = self.product.lookup(ids)
        rows = rows.to(self.dtype)
        return rows if self.embed_scale is None else rows * self.embed_scale.to(rows.dtype)


def pack_linear(
    weight: QuantizedWeight, dtype: torch.dtype, bias: torch.Tensor | None = None
) -> PackedLinear:
    """A Linear of integers `[out, in]`."""
    return PackedLinear(PackedWeight.pack(weight), dtype, bias)
