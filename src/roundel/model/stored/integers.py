"""Integers as GPTQ's and AWQ's files hold them; AutoRound writes both.

GPTQ (arXiv 2210.17323; the layout is AutoGPTQ's), a weight `[out, in]` of b bits in groups of g inputs:

    P.qweight [in b / 32, out] int32: each column a stream of bits, input after input
    P.qzeros  [in / g, out b / 32] int32: each row a stream of bits; in the first version of the format, less one
    P.scales  [in / g, out]
    P.g_idx   [in]: the group of each input; left out: they come in order

AWQ (arXiv 2306.00978), 4 bits: `qweight` `[in, out / 8]` and `qzeros` `[in / g, out / 8]` hold eight outputs in a word
in the order 0, 2, 4, 6, 1, 3, 5, 7.

Both are read as `(q - z) s`.
"""

from collections.abc import Mapping
from typing import Any

import torch

from roundel.errors import ModelError
from roundel.grid.packing import unpack
from roundel.model.checkpoint import Entry
from roundel.model.stored.form import SAVED_SO, Packed, Read, Tensors, misfit, owners, wanted

_WORD = 32
# The output channel of each of the eight codes of a word.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class Gptq:
    """GPTQ's files.

    Args:
        about: the quantization config.
        offset: what is to be added to stored zero points.
    """

    def __init__(self, about: Mapping[str, Any], offset: int) -> None:
        self._bits, self._offset = _bits_in(about, range(2, 9)), offset
        self.summary = f"GPTQ's {self._bits}-bit integers"

    def weights(self, stored: Mapping[str, Entry], read: Read) -> dict[str, Packed]:
        """Every module with codes."""
        found: dict[str, Packed] = {}
        for owner in owners(stored, "qweight"):
            parts = wanted(stored, owner, ("qweight", "qzeros", "scales"))
            if f"{owner}.g_idx" in stored:
                parts["g_idx"] = f"{owner}.g_idx"
            words, out = _two(stored, parts["qweight"])
            groups, zero_words = _two(stored, parts["qzeros"])
            bits, rest = divmod(zero_words * _WORD, out)  # layers may differ
            if rest or not bits or words * _WORD % bits:
                raise misfit(parts["qzeros"], stored[parts["qzeros"]].shape, f"qweight of {words}x{out}")
            width = words * _WORD // bits
            _check_scales(stored, parts["scales"], groups, out)
            if "g_idx" in parts and stored[parts["g_idx"]].shape != (width,):
                raise misfit(parts["g_idx"], stored[parts["g_idx"]].shape, f"{width} inputs")
            found[f"{owner}.weight"] = Packed(parts, (out, width))
        return found

    def is_beside(self, name: str) -> bool:
        """There is nothing of the kind."""
        return False

    def decode(self, name: str, parts: Tensors, dtype: torch.dtype) -> torch.Tensor:
        """Codes less zero points, times scales, in float32."""
        words, out = parts["qweight"].shape
        bits = parts["qzeros"].shape[1] * _WORD // out
        width, scales = words * _WORD // bits, parts["scales"].float()
        codes = unpack(parts["qweight"].t().contiguous(), bits, width)
        zeros = unpack(parts["qzeros"].contiguous(), bits, out).float() + self._offset
        groups = parts["g_idx"].long() if "g_idx" in parts else _in_order(width, len(scales))
        if int(groups.min()) < 0 or int(groups.max()) >= len(scales):
            raise ModelError(
                f"{name}: its g_idx names a group that is not there: a whole model is expected; {SAVED_SO}"
            )
        return (codes.float() - zeros.t()[:, groups]) * scales.t()[:, groups]


class Awq:
    """AWQ's files.

    Args:
        about: the quantization config.
    """

    def __init__(self, about: Mapping[str, Any]) -> None:
        version = str(about.get("version") or "gemm").lower()
        if version not in ("gemm", "exllama", "ipex"):
            raise ModelError(
                f"the model is AWQ's of the version {version!r}, which lays out its weights for one kernel: one of the "
                "version gemm, or the original model, is expected"
            )
        _bits_in(about, range(4, 5))
        self.summary = "AWQ's 4-bit integers"

    def weights(self, stored: Mapping[str, Entry], read: Read) -> dict[str, Packed]:
        """Every module with codes."""
        found: dict[str, Packed] = {}
        for owner in owners(stored, "qweight"):
            parts = wanted(stored, owner, ("qweight", "qzeros", "scales"))
            width, words = _two(stored, parts["qweight"])
            groups, zero_words = _two(stored, parts["qzeros"])
            if zero_words != words or not groups or width % groups:
                raise misfit(parts["qzeros"], stored[parts["qzeros"]].shape, f"qweight of {width}x{words}")
            _check_scales(stored, parts["scales"], groups, 8 * words)
            found[f"{owner}.weight"] = Packed(parts, (8 * words, width))
        return found

    def is_beside(self, name: str) -> bool:
        """There is nothing of the kind."""
        return False

    def decode(self, name: str, parts: Tensors, dtype: torch.dtype) -> torch.Tensor:
        """Codes less zero points, times scales, in float32."""
        codes, zeros = (unmixed(parts[part]).t() for part in ("qweight", "qzeros"))
        groups = _in_order(codes.shape[1], zeros.shape[1])
        return (codes.float() - zeros.float()[:, groups]) * parts["scales"].float().t()[:, groups]


def unmixed(words: torch.Tensor) -> torch.Tensor:
    """Codes `[rows, 8 n]` in the order of their outputs from `[rows, n]`."""
    rows, count = words.shape
    codes = unpack(words.contiguous(), 4, 8 * count).view(rows, count, 8)
    return codes[:, :, torch.tensor(AWQ_ORDER).argsort()].reshape(rows, -1)


def _in_order(width: int, groups: int) -> torch.Tensor:
    return torch.arange(width) // -(-width // groups)


def _bits_in(about: Mapping[str, Any], known: range) -> int:
    bits = about.get("bits", about.get("w_bit", 4))
    if type(bits) is not int or bits not in known:
        words = str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"
        raise ModelError(f"the quantization config of the model says bits={bits!r}: {words} is expected")
    return bits


def _two(stored: Mapping[str, Entry], name: str) -> tuple[int, int]:
    entry = stored[name]
    if len(entry.shape) != 2 or entry.dtype != "I32" or 0 in entry.shape:
        raise misfit(
            name, entry.shape, f"packed integers (int32 words in two dimensions; it is {entry.dtype})"
        )
    return entry.shape[0], entry.shape[1]


def _check_scales(stored: Mapping[str, Entry], name: str, groups: int, out: int) -> None:
    if stored[name].shape != (groups, out):
        raise misfit(name, stored[name].shape, f"{groups} groups of {out} outputs")
