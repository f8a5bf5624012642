"""The compiled extension (src/kernels), or None: a wheel that was built without a compiler does not have it."""

from typing import Any

_found: Any
try:
    from roundel.runtime import _kernels as _found  # type: ignore[attr-defined,no-redef]
except ImportError:
    _found = None

EXTENSION: Any = _found
