"""The compiled extension (src/kernels), or None: a wheel that was built without a compiler does not have it."""

from typing import Any

import torch

_found: Any
try:
    from roundel.compiled import _kernels as _found  # type: ignore[attr-defined,no-redef]
except ImportError:
    _found = None

EXTENSION: Any = _found

# As enum Number in src/kernels/matrix.h.
NUMBERS = {
    torch.float32: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.uint8: 4,
    torch.int8: 5,
}


def instruction_sets() -> list[str]:
    """Those that this installation and this processor have, best first; empty: there are no kernels."""
    return [] if EXTENSION is None else list(EXTENSION.instruction_sets())


def address(tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Where a tensor is, once it is seen to be what a kernel takes it for: nothing stops that at its end.

    Raises:
        ValueError: it is no contiguous tensor of that shape and type.
    """
    if tuple(tensor.shape) != tuple(shape) or tensor.dtype is not dtype or not tensor.is_contiguous():
        raise ValueError(
            f"contiguous {str(dtype).removeprefix('torch.')} of shape {list(shape)} is expected, and "
            f"{list(tensor.shape)} {tensor.dtype} is given"
        )
    return tensor.data_ptr()
