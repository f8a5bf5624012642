"""How much main memory the process held at most: in all, and during a part of the work.

Linux keeps the high-water mark of every process and lets it be set back, so a part of the work has a peak of its own,
and that of the whole process is the largest of all. Elsewhere, and where that is forbidden, the mark only rises: a
part's peak is the peak so far then. Memory of accelerators is not counted.
"""

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
# Written there, it sets the high-water mark back to what the process holds now (proc_pid_clear_refs(5)).
_SET_BACK = "5"

# The highest mark that was seen.
_highest = 0


def peak_memory() -> int:
    """Bytes of main memory that the process held at most so far."""
    part_peak()
    return _highest


def begin_part() -> None:
    """From now on `part_peak` counts, where the system allows it."""
    part_peak()
    with suppress(OSError):
        _CLEAR.write_text(_SET_BACK)


def part_peak() -> int:
    """Bytes that the process held at most since `begin_part`; so far, where the mark cannot be set back."""
    global _highest
    mark = _mark()
    _highest = max(_highest, mark)
    return mark


def _mark() -> int:
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    if _STATUS.is_file():
        # Not getrusage: on Linux a process starts with the peak of the one that launched it.
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        if "VmHWM" in lines:
            return int(lines["VmHWM"].split()[0]) * 1024
    import resource  # Unix only

    # macOS counts in bytes, the others in kibibytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def give_back_memory() -> None:
    """Let the system have what was freed and the C library keeps for the next use, where it can be told to (glibc)."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def free_memory() -> int:
    """Bytes of main memory that this process may still take, a control group's limit counted."""
    free: int = psutil.virtual_memory().available
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, max(0, int(Path(limit).read_text()) - int(Path(usage).read_text())))
        except (OSError, ValueError):
            continue  # no such group, or no limit
    return free
