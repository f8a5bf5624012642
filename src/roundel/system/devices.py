"""Where and in which type a block computes."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from roundel.errors import RecipeError
from roundel.formatting import first_line
from roundel.system.ranks import ALONE, Ranks
from roundel.system.torchrun import place

# Parameters of glibc's mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
KEPT_BYTES = 256 << 20
# Buffers of so many bytes are returned at once.
RETURNED_BYTES = 8 << 20


def choose_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """`auto` takes the first accelerator that torch sees, else the CPU.

    Of several ranks on a machine each takes an accelerator of its own.

    Raises:
        RecipeError: the named device is unknown or absent.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        name = found.type if found else "cpu"
    if ranks.size > 1 and name not in ("cpu", "meta") and ":" not in name:
        name = f"{name}:{place()}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RecipeError(
            f"device {name!r} cannot be used ({first_line(error)}); auto, cpu, cuda, xpu or mps"
        ) from error
    if device.type == "meta":
        raise RecipeError("device 'meta' cannot be used (it computes nothing); auto, cpu, cuda, xpu or mps")
    return device


def autocast_dtype(device: torch.device, amp: str) -> torch.dtype | None:
    """The type of the matrix products of a block; None = float32.

    `auto` takes bfloat16 only where the hardware multiplies it: on a CPU without such units it is several
    times slower than float32. The choice depends on the machine alone, never on a timing, so that a run can
    be repeated bit for bit.
    """
    if amp == "auto":
        return torch.bfloat16 if _multiplies_bfloat16(device) else None
    return None if amp == "float32" else getattr(torch, amp)


@contextmanager
def autocasting(device: torch.device, amp: torch.dtype | None) -> Iterator[None]:
    """Matrix products in `amp` inside; None = float32.

    Raises:
        RecipeError: the model's code does not bear it.
    """
    with torch.autocast(device.type, dtype=amp, enabled=amp is not None):
        try:
            yield
        except RuntimeError as error:
            if amp is None or not any(words in str(error) for words in ("dtype", "scalar type")):
                raise
            half = str(amp).removeprefix("torch.")
            raise RecipeError(
                f"the model's own code mixes {half} with float32 where it must not ({first_line(error)}): "
                "set amp=float32"
            ) from error


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cpu":
        # torch has no public query for this; builds without these two know no such CPU either.
        queries = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, query, lambda: False)() for query in queries)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "xpu"


def keep_freed_memory() -> None:
    """Let glibc keep the pages of freed tensors instead of returning them to the system.

    A tuning step frees and takes again dozens of buffers of some megabytes. By default each is mapped and
    unmapped, and every page is faulted in anew: a tenth of a step's time on a CPU (with experts, half of it). Larger
    buffers are still returned at once (in between they would leave holes), and no more than `KEPT_BYTES` is kept.

    oneDNN keeps what it has prepared for each of the last 1024 shapes of a product. Experts see another number of
    tokens every time: hundreds of megabytes for nothing. A dense block has a dozen shapes.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    if not _glibc():
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, RETURNED_BYTES)
    libc.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def return_freed_memory() -> None:
    """Give pages that are free back to the system, wherever they lie: between blocks, so that gaps do not add up."""
    if _glibc():
        ctypes.CDLL(None).malloc_trim(0)


def kept_of_freed(used: int) -> int:
    """About how much freed memory a process keeps that uses so many bytes for its work: most of it is used again."""
    return min(KEPT_BYTES * 3 // 8, used // 3) if _glibc() else 0


def _glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


@contextmanager
def computing(block: nn.Module, device: torch.device) -> Iterator[None]:
    """The block in fp32 on `device`; afterwards every tensor is back in its own type and place."""
    tensors = [*block.parameters(), *block.buffers()]
    homes = [(t.dtype, t.device) for t in tensors]
    for tensor in tensors:
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        tensor.data = tensor.data.to(device, dtype)
    try:
        yield
    finally:
        for tensor, (dtype, home) in zip(tensors, homes, strict=True):
            tensor.data = tensor.data.to(home, dtype)
