"""Products with packed weights: by kernels where they serve, else by torch's operators."""

import torch
import torch.nn.functional as F

from roundel.runtime import kernels, reference
from roundel.runtime.modes import Mode
from roundel.runtime.packed_weight import PackedWeight

# Of more tokens at once, decoding the weights for torch's matrix product is faster than exact products here.
_MOST_TOKENS = 16
# Weights that are decoded at a time.
_DECODED = 2**22


class Product:
    """Multiplies by one packed weight.

    Args:
        weight: its parts may move later, by another object of this class.
    """

    def __init__(self, weight: PackedWeight) -> None:
        self.weight = weight
        self.handle = kernels.Handle(weight) if kernels.serves(weight) else None
        self._columns = weight.layout.columns
        self._row_sums: torch.Tensor | None = None

    def multiply(self, x: torch.Tensor, mode: Mode) -> torch.Tensor:
        """`x W^T`: `[..., columns]` floating point to `[..., rows]` of the same type.

        Raises:
            ValueError: x has another width.
        """
        columns = self._columns
        if x.shape[-1] != columns:
            raise ValueError(f"[..., {columns}] is expected, and {list(x.shape)} is given")
        # Gradients of the activations pass through torch's products only.
        learning = x.requires_grad and torch.is_grad_enabled()
        if learning:
            mode = "exact"
        if self.handle is None:
            return reference.multiply(x, self.weight, mode).to(x.dtype)
        # A token at a time, what surrounds the product counts: no operator runs that has nothing to do.
        floats = x if x.dtype is torch.float32 else x.float()
        found = None
        if not learning and (mode == "fast" or x.numel() <= _MOST_TOKENS * columns):
            found = self.handle.multiply(floats, mode)
        if found is None:  # many tokens, gradients, or activations beyond what the kernels take
            found = self._decode_and_multiply(floats)
        return found if x.dtype is torch.float32 else found.to(x.dtype)

    def multiply_integers(
        self, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor
    ) -> torch.Tensor:
        """`scale (codes - zero) W^T` in float32.

        Args:
            codes: `[n, columns]` int8.
            scales, zeros: `[n]` float32.

        Returns:
            `[n, rows]` float32.
        """
        if self.handle is None:
            x = (codes.float() - zeros[:, None]) * scales[:, None]
            return F.linear(x, reference.decode(self.weight))
        if self._row_sums is None:
            parts = [self._rows(first, last).double().sum(1) for first, last in self._spans()]
            self._row_sums = torch.cat(parts).float()
        return self.handle.multiply_integers(codes, scales, zeros, self._row_sums)

    def lookup(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of the weight: `[...]` int64 to `[..., columns]` float32."""
        if self.handle is None:
            return reference.decode(self.weight)[rows]
        found = self.handle.lookup(rows.reshape(-1))
        return self._in_order(found).view(*rows.shape, self.weight.layout.columns)

    def _decode_and_multiply(self, x: torch.Tensor) -> torch.Tensor:
        order = self.weight.parts.get("order")
        if order is not None:
            x = x[..., order]
        return torch.cat([F.linear(x, self._rows(first, last)) for first, last in self._spans()], -1)

    def _rows(self, first: int, last: int) -> torch.Tensor:
        assert self.handle is not None
        return self.handle.decode(first, last)

    def _spans(self) -> list[tuple[int, int]]:
        layout = self.weight.layout
        step = max(16, _DECODED // layout.columns // 16 * 16)
        return [(first, min(first + step, layout.rows)) for first in range(0, layout.rows, step)]

    def _in_order(self, columns: torch.Tensor) -> torch.Tensor:
        """Columns in the order of the codes as the model has them."""
        order = self.weight.parts.get("order")
        return columns if order is None else torch.empty_like(columns).index_copy_(-1, order.long(), columns)
