"""Where the decoder blocks are, found by structure.

A causal language model is embeddings, a stack of blocks and a head. The stack is the `nn.ModuleList` with the
most weight in Linears, lists inside other lists (experts) left aside. That it really is a chain, each block
fed with the output of the one before, is checked when the model runs (capture.py).
"""

from dataclasses import dataclass

from torch import nn

from roundel.errors import ModelError
from roundel.model.linears import LinearView, linears_in


@dataclass(frozen=True)
class BlockStack:
    """The decoder blocks of a model.

    Attributes:
        name: the list's name, for example `model.layers`.
        blocks: its members, in order.
    """

    name: str
    blocks: nn.ModuleList

    def __len__(self) -> int:
        return len(self.blocks)

    def block_name(self, index: int) -> str:
        """Full name of a block."""
        return f"{self.name}.{index}"

    def linears(self, index: int) -> list[LinearView]:
        """The Linears of a block under their full names."""
        return linears_in(self.blocks[index], self.block_name(index))


def find_blocks(model: nn.Module) -> BlockStack:
    """Find the decoder blocks.

    Raises:
        ModelError: no list of modules holds a Linear.
    """
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    outer = {name: m for name, m in lists.items() if not any(name.startswith(o + ".") for o in lists)}
    weights = {name: sum(v.parameter.numel() for v in linears_in(m, name)) for name, m in outer.items()}
    if not weights or not max(weights.values()):
        seen = ", ".join(lists) or "none"
        raise ModelError(
            f"no stack of decoder blocks in {type(model).__name__}: a list of modules with Linears is wanted, "
            f"module lists found: {seen}"
        )
    name = max(weights, key=lambda n: weights[n])
    return BlockStack(name, outer[name])


def linears_outside(model: nn.Module, stack: BlockStack) -> list[LinearView]:
    """Linears that no block holds: the head, projections around the stack."""
    return [view for view in linears_in(model, "") if not view.name.startswith(stack.name + ".")]
