"""In which form compressed-tensors carries a set of grids, and who reads it.

How a client multiplies decides which written form gives exactly the tuned weights:

* by default transformers casts the scales to the model's type and multiplies there: exact if the model's type
  holds them. Symmetric files are written so.
* transformers 5.23 with compressed-tensors >= 0.18 expects unpacked zero points in that mode and refuses the
  packed ones that vLLM wants. `dequantize: true` in the file makes it unpack at load instead; it then
  multiplies in the type in which the scales are STORED, so they are stored in fp32 unless they have the
  model's type. But with that key transformers reads every layer by the first group's scheme, so it is only
  written where there is one scheme.
* asymmetric files of several schemes, or with quantized activations (which `dequantize: true` would turn off), use
  the `block` strategy with blocks of 1 x g and unpacked int8 zero points: transformers reads them exactly, vLLM does
  not read them.

A group size that does not divide `in` has no written form that all readers take; groups are then split
(written_groups.py). Asymmetric layers of one scheme are all split into
parts that divide every row: two group sizes in a file would cost vLLM.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from roundel.activations.scheme import Activations
from roundel.errors import FormatError
from roundel.formats.readers import Readers
from roundel.formats.written_groups import common_group, dividing_group
from roundel.grid.scheme import Scheme

# The smallest group that the kernels of vLLM read.
_SMALLEST_GROUP = 32
_BYTE = 8
# Widths with zero points that vLLM has kernels for, and those that it always had without.
_VLLM_BITS = (4, 8)


@dataclass(frozen=True)
class Form:
    """The written form of a whole file.

    Attributes:
        dequantize: write `dequantize: true`.
        block: asymmetric layers use the block strategy with unpacked zero points.
        scale_dtype: type in which scales are stored; None = the type they have.
        packed: `pack-quantized`; else `int-quantized`.
    """

    dequantize: bool
    block: bool
    scale_dtype: torch.dtype | None
    packed: bool = True

    @property
    def name(self) -> str:
        """In the words of the library."""
        return "pack-quantized" if self.packed else "int-quantized"


def written_schemes(
    schemes: Mapping[str, Scheme], widths: Mapping[str, int], activations: Activations
) -> dict[str, Scheme]:
    """The scheme of every layer as it is written: its groups divide its rows.

    Args:
        schemes: the grid of every quantized Linear, by its name.
        widths: their `in_features`.
        activations: how they are quantized.

    Raises:
        FormatError: a group has no written form.
    """
    groups = {
        name: dividing_group(name, scheme.group_size, widths[name], _SMALLEST_GROUP, "compressed-tensors")
        for name, scheme in schemes.items()
    }
    one = len(set(schemes.values())) == 1 and not next(iter(schemes.values())).sym
    if one and not activations:
        groups = common_group(groups, widths, _SMALLEST_GROUP)
    return {name: s.model_copy(update={"group_size": groups[name]}) for name, s in schemes.items()}


def choose_form(
    schemes: set[Scheme], model_dtype: torch.dtype, activations: Activations, *, dense: bool = False
) -> Form:
    """The written form of a file.

    Args:
        schemes: of all layers, as they are written.
        model_dtype: in which a client computes.
        activations: how they are quantized.
        dense: the weights must become dense while a client loads them, and what that forbids has been checked.

    Raises:
        FormatError: there is none.
    """
    kept = all(_holds(model_dtype, s.torch_dtype) for s in schemes)
    same = all(s.torch_dtype == model_dtype for s in schemes)
    symmetric = all(s.sym for s in schemes)
    if activations and kept and not dense:
        # A file with `dequantize: true` runs with unquantized activations.
        packed = activations.inputs is None or any(s.bits != _BYTE for s in schemes)
        return Form(dequantize=False, block=packed and not symmetric, scale_dtype=None, packed=packed)
    if kept and symmetric and not dense:
        return Form(dequantize=False, block=False, scale_dtype=None)
    if len(schemes) == 1 and (dense or not activations):
        return Form(dequantize=True, block=False, scale_dtype=None if same else torch.float32)
    if kept:
        return Form(dequantize=False, block=True, scale_dtype=None)
    what = "quantized activations" if activations else "several schemes"
    raise FormatError(
        f"compressed-tensors cannot carry {what} with scales that a {model_dtype} model does not hold: "
        "leave scale_dtype out, use --format roundel, or --format dense"
    )


def _holds(model_dtype: torch.dtype, scale_dtype: torch.dtype) -> bool:
    return model_dtype in (torch.float32, scale_dtype)


def readers_of(form: Form, schemes: set[Scheme], activations: Activations, *, stacked: bool) -> Readers:
    """Who opens a file.

    Args:
        form: the written form.
        schemes: of all layers, as they are written.
        activations: how they are quantized.
        stacked: experts are among them.
    """
    bits = sorted({scheme.bits for scheme in schemes})
    if activations:
        return Readers(("transformers",), "vLLM is untried with quantized activations")
    if form.block:
        return Readers(
            ("transformers",),
            "Not in vLLM, which reads no zero points of several schemes in one file: set sym=true, or one width and "
            "group size for all layers",
        )
    if stacked:
        return Readers(("transformers",), "vLLM is untried with experts")
    asymmetric = [scheme.bits for scheme in schemes if not scheme.sym]
    if any(width not in _VLLM_BITS for width in asymmetric):
        return Readers(
            ("transformers",),
            f"Not in vLLM, which reads zero points with 4 and 8 bits only, not with {asymmetric[0]}: set sym=true",
        )
    if bits == [4]:
        return Readers(("transformers", "vLLM"))
    if all(width in _VLLM_BITS for width in bits):
        return Readers(("transformers", "vLLM on a GPU"), "vLLM on a CPU reads 4 bits only")
    return Readers(
        ("transformers", "recent vLLM on a GPU"), "vLLM on a CPU, and older ones, read 4 bits only"
    )
