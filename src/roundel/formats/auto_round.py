"""AutoRound's own format, which its library reads on every device: GPTQ's layout, 2 to 8 bits.

Two packings: `auto_round:auto_gptq`, with zero points less one, where all layers are symmetric (vLLM reads that as
well), and `auto_round`, with zero points as they are. Layers that are not like most, and those in the blocks that are
left out, stand in `extra_config` under their full names.
"""

from collections.abc import Collection
from typing import Any

from roundel.formats.content import Content
from roundel.formats.integer_layouts import gptq_tensors, gptq_weight
from roundel.formats.kernel_clients import Facts, auto_round_readers
from roundel.formats.kernel_layout import KernelLayout, Schemes, grid_of, prevailing
from roundel.formats.left_out import left_out
from roundel.formats.readers import Readers
from roundel.formats.shards import Tensors
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.model.blocks import find_blocks

_CODES_IN_A_ROUND = 32
_UNQUANTIZED = {"bits": 16, "data_type": "float"}


class AutoRound(KernelLayout):
    """Writes AutoRound's files."""

    name = "auto-round"
    _widths = tuple(range(2, 9))

    def _multiple(self, bits: int) -> tuple[int, int]:
        return _CODES_IN_A_ROUND, _CODES_IN_A_ROUND

    def _tensors(self, weight: QuantizedWeight, written: Scheme, schemes: Collection[Scheme]) -> Tensors:
        width = written.width(weight.shape[1])
        return gptq_tensors(weight, width, less_one=_symmetric(schemes), index=False)

    def _weight(self, tensors: Tensors, scheme: Scheme, schemes: Collection[Scheme]) -> QuantizedWeight:
        return gptq_weight(tensors, scheme, less_one=_symmetric(schemes))

    def _about(self, content: Content, schemes: Schemes) -> dict[str, Any]:
        stack = find_blocks(content.model, content.blocks)
        bits, group_size, sym = usual = prevailing(schemes)
        extra: dict[str, dict[str, Any]] = {}
        for name, scheme in schemes.items():
            if grid_of(scheme) != usual or not stack.holds(name):
                own = {
                    "bits": scheme.bits,
                    "group_size": scheme.group_size,
                    "sym": scheme.sym,
                    "data_type": "int",
                }
                extra |= dict.fromkeys((name, *(part.name for part in content.parts[name])), own)
        left = left_out(content, schemes)
        extra |= {name: dict(_UNQUANTIZED) for name in left if stack.holds(name)}
        about = {
            "quant_method": "auto-round",
            "packing_format": "auto_round:auto_gptq" if _symmetric(schemes.values()) else "auto_round",
            "bits": bits,
            "group_size": group_size,
            "sym": sym,
            "data_type": "int",
            "block_name_to_quantize": stack.name,
        }
        return about | ({"extra_config": extra} if extra else {})

    def _readers(self, facts: Facts) -> Readers:
        return auto_round_readers(facts)


def _symmetric(schemes: Collection[Scheme]) -> bool:
    return all(scheme.sym for scheme in schemes)
