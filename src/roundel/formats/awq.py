"""AWQ's format for matrix kernels (`version: gemm`): 4 bits with zero points, one group size for all layers.

Zero points are stored as they are. A symmetric grid is one with the zero point 8 everywhere, and is written so. What is
left out is named in `modules_to_not_convert`, which clients look for inside the names of modules, and once more in
`dynamic`: GPTQModel 7.7 reads that alone, and would take what is left out for zeros.
"""

from collections.abc import Collection
from typing import Any

from roundel.errors import FormatError
from roundel.formats.content import Content
from roundel.formats.integer_layouts import awq_tensors, awq_weight
from roundel.formats.kernel_clients import Facts, awq_readers
from roundel.formats.kernel_layout import KernelLayout, Schemes, head_name, name_pattern
from roundel.formats.left_out import left_out
from roundel.formats.plain_grid import WAYS_OUT
from roundel.formats.readers import Readers
from roundel.formats.shards import Tensors
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme

_OUTPUTS_IN_A_WORD = 8


class Awq(KernelLayout):
    """Writes AWQ's files."""

    name = "awq"
    _widths = (4,)

    def _multiple(self, bits: int) -> tuple[int, int]:
        return 1, _OUTPUTS_IN_A_WORD

    def _refuse(self, schemes: Schemes) -> None:
        groups = sorted({scheme.group_size for scheme in schemes.values()})
        if len(groups) > 1:
            examples = [
                next(name for name, scheme in schemes.items() if scheme.group_size == group)
                for group in groups[:2]
            ]
            raise FormatError(
                f"{examples[0]} has groups of {groups[0]} and {examples[1]} of {groups[1]}, and awq carries one group "
                f"size: set one group_size, use --format gptq_v2, or {WAYS_OUT}"
            )

    def _tensors(self, weight: QuantizedWeight, written: Scheme, schemes: Collection[Scheme]) -> Tensors:
        return awq_tensors(weight, written.width(weight.shape[1]))

    def _weight(self, tensors: Tensors, scheme: Scheme, schemes: Collection[Scheme]) -> QuantizedWeight:
        return awq_weight(tensors, scheme)

    def _about(self, content: Content, schemes: Schemes) -> dict[str, Any]:
        left = left_out(content, schemes)
        (group_size,) = {scheme.group_size for scheme in schemes.values()}
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": group_size,
            "zero_point": True,
            "version": "gemm",
            "lm_head": head_name(content.model) in schemes,
            "modules_to_not_convert": left,
            "dynamic": {f"-:{name_pattern(name)}": {} for name in left},
        }

    def _readers(self, facts: Facts) -> Readers:
        return awq_readers(facts)
