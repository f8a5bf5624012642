"""How fast this machine reads main memory: by reading a buffer that no cache holds.

What reads fastest depends on the machine, the library and the number of threads, and a bound is wanted that no model
can exceed by much: so the buffer is read in several ways, and the fastest pass counts. Anything else that runs on the
machine only makes passes slower.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from roundel.system.memory import free_memory

_CACHES = "/sys/devices/system/cpu/cpu0/cache"
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_LEAST = 256 << 20
# As many times the largest cache, so that little of the buffer is left in it from one pass to the next.
_TIMES = 8
_COLUMNS = 4096


def buffer_bytes() -> int:
    """A size much larger than the caches; less where a quarter of the free memory is less."""
    whole = max(_LEAST, _TIMES * largest_cache())
    return max(_COLUMNS * 4, min(whole, free_memory() // 4))


class ReadBandwidth:
    """Bytes per second that torch reads, with the number of threads that it has.

    Args:
        size: bytes of the buffer.
    """

    def __init__(self, size: int) -> None:
        buffer = torch.ones(max(1, size // (4 * _COLUMNS)), _COLUMNS)  # touched, so that it is memory
        whole = buffer.view(torch.int32)
        vector = torch.ones(_COLUMNS)
        self.size = buffer.numel() * 4
        self._ways: dict[str, Callable[[], torch.Tensor]] = {
            "sum of float32": buffer.sum,
            "largest of int32": whole.amax,
            "float32 matrix by vector": lambda: buffer @ vector,
        }

    def measure(self, passes: int = 3) -> float:
        """The fastest of so many passes in each way, in bytes per second."""
        return max(self._rate(way) for way in self._ways.values() for _ in range(passes))

    def _rate(self, way: Callable[[], torch.Tensor]) -> float:
        begun = time.perf_counter()
        way()
        return self.size / (time.perf_counter() - begun)


def largest_cache() -> int:
    """Bytes; 0 where the system does not tell."""
    sizes = [0]
    for path in Path(_CACHES).glob("index*/size"):
        try:
            text = path.read_text().strip()
            sizes.append(int(text[:-1]) * _UNITS[text[-1]] if text[-1:] in _UNITS else int(text))
        except (OSError, ValueError):
            continue
    return max(sizes)
