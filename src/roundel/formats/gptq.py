"""GPTQ's format, in its two versions: `gptq`, the one of AutoGPTQ, and `gptq_v2`.

They differ in zero points: the first stores them less one, the second as they are (integer_layouts.py). Where codes are
in another order than the input channels, `g_idx` has the group of each channel, and the config says `desc_act`.

Layers of another width, group size or symmetry than most are told apart in `dynamic`, GPTQModel's rules: patterns of
module names, `+:` with what is otherwise, `-:` for what is left out; vLLM joins some Linears and asks for the joint
name, which the pattern has as well. transformers does not read `dynamic`: where something is left out, its
`modules_in_block_to_quantize` names all the others, in full, since blocks may differ.
"""

import json
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

from roundel.formats.content import Content
from roundel.formats.integer_layouts import gptq_tensors, gptq_weight
from roundel.formats.kernel_clients import Facts, gptq_readers
from roundel.formats.kernel_layout import (
    KernelLayout,
    Schemes,
    grid_of,
    head_name,
    multiple_of_words,
    name_pattern,
    prevailing,
)
from roundel.formats.left_out import left_out
from roundel.formats.readers import Readers
from roundel.formats.shards import ShardReader, Tensors
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.model.blocks import find_blocks

# Linears that vLLM joins, by the joint name.
_JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_INDEX = ".g_idx"


class Gptq(KernelLayout):
    """Writes GPTQ's files.

    Args:
        checkpoint_format: `gptq` or `gptq_v2`.
    """

    _widths = (2, 3, 4, 8)
    _order = True

    def __init__(self, checkpoint_format: str) -> None:
        self.name = checkpoint_format
        self._less_one = checkpoint_format == "gptq"

    def _multiple(self, bits: int) -> tuple[int, int]:
        return multiple_of_words(bits), multiple_of_words(bits)

    def _tensors(self, weight: QuantizedWeight, written: Scheme, schemes: Collection[Scheme]) -> Tensors:
        return gptq_tensors(weight, written.width(weight.shape[1]), less_one=self._less_one, index=True)

    def _weight(self, tensors: Tensors, scheme: Scheme, schemes: Collection[Scheme]) -> QuantizedWeight:
        return gptq_weight(tensors, scheme, less_one=self._less_one)

    def write(self, folder: Path, content: Content) -> None:
        """Write config.json and safetensors; whether columns have an order of their own is seen at the end."""
        super().write(folder, content)
        stored = ShardReader(folder)
        indices = (stored[name] for name in stored.names if name.endswith(_INDEX))
        if any((index.diff() < 0).any() for index in indices):
            path = folder / "config.json"
            config = json.loads(path.read_text(encoding="utf-8"))
            config["quantization_config"]["desc_act"] = True
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def _about(self, content: Content, schemes: Schemes) -> dict[str, Any]:
        stack = find_blocks(content.model, content.blocks)
        left = [
            name for name in left_out(content, schemes) if stack.holds(name) or name in content.extra.linears
        ]
        bits, group_size, sym = prevailing(schemes)
        about = {
            "quant_method": "gptq",
            "bits": bits,
            "group_size": group_size,
            "sym": sym,
            "desc_act": False,
            "checkpoint_format": self.name,
            "lm_head": head_name(content.model) in schemes,
            "block_name_to_quantize": stack.name,
            "meta": {"quantizer": [f"roundel:{version('roundel')}"]},
        }
        rules = _rules(content, schemes) | {f"-:{name_pattern(name)}": {} for name in left}
        if rules:
            about["dynamic"] = rules
        if left:
            about["modules_in_block_to_quantize"] = [
                [part.name for parts in content.parts.values() for part in parts]
            ]
        return about

    def _readers(self, facts: Facts) -> Readers:
        return gptq_readers(facts, first_version=self._less_one)


def _rules(content: Content, schemes: Schemes) -> dict[str, dict[str, Any]]:
    """What GPTQModel and vLLM are told of layers that are not like most."""
    usual = prevailing(schemes)
    rules: dict[str, dict[str, Any]] = {}
    for name, scheme in schemes.items():
        bits, group_size, sym = grid_of(scheme)
        if (bits, group_size, sym) == usual:
            continue
        said = {"bits": bits, "group_size": group_size, "sym": sym}
        names = [name, *(part.name for part in content.parts[name])]
        rules |= dict.fromkeys((f"+:{name_pattern(n, _joint_name(name, schemes))}" for n in names), said)
    return rules


def _joint_name(name: str, schemes: Schemes) -> str | None:
    """Under which vLLM asks for a layer and others of the same grid together."""
    owner, _, own = name.rpartition(".")
    for joint, members in _JOINED.items():
        if own in members:
            grids = {grid_of(schemes[f"{owner}.{m}"]) for m in members if f"{owner}.{m}" in schemes}
            return joint if len(grids) == 1 else None
    return None
