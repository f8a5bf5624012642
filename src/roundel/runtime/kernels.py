"""The kernels, where this installation has them: packed weights on the CPU, by one of its instruction sets.

They are an extension of their own (src/kernels), which a wheel that was built without a compiler does not have.
"""

from typing import Any

import torch

from roundel.compiled.extension import EXTENSION, NUMBERS
from roundel.runtime.layout import Layout
from roundel.runtime.modes import Mode
from roundel.runtime.packed_weight import PackedWeight
from roundel.runtime.statistics import level_groups, level_rows, nibble_bits, share_bytes

# Two more of enum Number, which torch has no types for.
_LOW_NIBBLE, _HIGH_NIBBLE = 6, 7


def serves(weight: PackedWeight) -> bool:
    """Whether the kernels can multiply with it."""
    return EXTENSION is not None and weight.parts["codes"].device.type == "cpu"


class Handle:
    """A weight as the kernels know it; it keeps the tensors that they read.

    Args:
        weight: that `serves` says yes to.
        instruction_set: empty: the best one.
    """

    def __init__(self, weight: PackedWeight, instruction_set: str = "") -> None:
        layout = weight.layout
        self.rows, self.columns = layout.rows, layout.columns
        self._set = instruction_set
        self._parts = {name: part.contiguous() for name, part in weight.parts.items()}
        columns = self._parts.get("outliers.columns")
        self._matrix: Any = EXTENSION.Matrix(
            **layout.dimensions,
            minima=layout.scheme.minima,
            codes=self._at("codes"),
            scale=self._statistic(layout, "scale"),
            zero=EXTENSION.Statistic() if layout.scheme.sym else self._statistic(layout, "zero"),
            level_bits=nibble_bits(layout),
            outlier_starts=self._at("outliers.starts"),
            outlier_columns=self._at("outliers.columns"),
            outlier_values=self._at("outliers.values"),
            outlier_wide=columns is not None and columns.dtype is torch.int32,
            order=self._at("order"),
        )

    def multiply(self, x: torch.Tensor, mode: Mode) -> torch.Tensor | None:
        """`x W^T`: `[..., columns]` float32 to `[..., rows]` float32; None: activations are not finite, or beyond 2^96.

        Raises:
            ValueError: x is of another shape, type or device.
        """
        x = self._inputs(x, torch.float32)
        y = _memory(*x.shape[:-1], self.rows)
        tokens, threads = x.numel() // self.columns, torch.get_num_threads()
        exact = mode == "exact"
        finite = self._matrix.multiply(x.data_ptr(), tokens, exact, y.data_ptr(), threads, self._set)
        return y if finite else None

    def multiply_integers(
        self, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, row_sums: torch.Tensor
    ) -> torch.Tensor:
        """`scale (codes - zero) W^T`.

        Args:
            codes: `[n, columns]` int8.
            scales, zeros: `[n]` float32.
            row_sums: `[rows]` float32, of the weights.

        Returns:
            `[n, rows]` float32.

        Raises:
            ValueError: codes are of another shape, type or device.
        """
        codes = self._inputs(codes, torch.int8)
        scales, zeros, row_sums = scales.contiguous(), zeros.contiguous(), row_sums.contiguous()
        y = _memory(codes.shape[0], self.rows)
        self._matrix.multiply_integers(
            codes.data_ptr(),
            codes.shape[0],
            scales.data_ptr(),
            zeros.data_ptr(),
            row_sums.data_ptr(),
            y.data_ptr(),
            torch.get_num_threads(),
            self._set,
        )
        return y

    def decode(self, first: int, last: int) -> torch.Tensor:
        """Rows as floats, `[last - first, columns]`, columns in the order of the codes.

        Raises:
            IndexError: there are no such rows.
        """
        if not 0 <= first <= last <= self.rows:
            raise IndexError(f"rows of [0, {self.rows}) are expected, and {first} to {last} are asked for")
        to = _memory(last - first, self.columns)
        self._matrix.decode(first, last, to.data_ptr(), torch.get_num_threads(), self._set)
        return to

    def lookup(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of their numbers `[n]` int64 as floats, `[n, columns]`, columns in the order of the codes.

        Raises:
            IndexError: there is no such row.
        """
        rows = rows.to(torch.int64).contiguous()
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.rows:
            raise IndexError(f"rows of [0, {self.rows}) are expected, and {rows.tolist()[:8]} are asked for")
        to = _memory(len(rows), self.columns)
        self._matrix.lookup(rows.data_ptr(), len(rows), to.data_ptr(), torch.get_num_threads(), self._set)
        return to

    def _inputs(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """As the kernels read it: they take an address, and nothing stops them at the end of what is there."""
        if x.shape[-1:] != (self.columns,) or x.dtype is not dtype or x.device.type != "cpu":
            raise ValueError(
                f"[..., {self.columns}] {str(dtype)[6:]} on the CPU is expected, and {list(x.shape)} "
                f"{str(x.dtype)[6:]} on {x.device} is given"
            )
        return x.contiguous()

    def _at(self, name: str) -> int:
        part = self._parts.get(name)
        return 0 if part is None else part.data_ptr()

    def _statistic(self, layout: Layout, name: str) -> Any:
        if name in self._parts:
            return EXTENSION.Statistic(type=NUMBERS[self._parts[name].dtype], values=self._at(name))
        if share_bytes(layout):
            number, codes = (_LOW_NIBBLE if name == "scale" else _HIGH_NIBBLE), self._at("scale.codes")
        else:
            number, codes = NUMBERS[self._parts[f"{name}.codes"].dtype], self._at(f"{name}.codes")
        tiles = layout.scheme.two_level
        return EXTENSION.Statistic(
            type=number,
            values=codes,
            level_type=NUMBERS[self._parts[f"{name}.step"].dtype],
            step=self._at(f"{name}.step"),
            shift=self._at(f"{name}.shift"),
            level_rows=level_rows(layout) if tiles else 0,
            level_groups=level_groups(layout),
        )


def _memory(*shape: int) -> torch.Tensor:
    """To be written by the kernels, whatever torch's default type and device are now."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")
