"""The compiled extension (src/kernels), or None: a wheel that was built without a compiler does not have it."""

from typing import Any

_found: Any
try:
    from roundel.compiled import _kernels as _found  # type: ignore[attr-defined,no-redef]
except ImportError:
    _found = None

EXTENSION: Any = _found


def instruction_sets() -> list[str]:
    """Those that this installation and this processor have, best first; empty: there are no kernels."""
    return [] if EXTENSION is None else list(EXTENSION.instruction_sets())
