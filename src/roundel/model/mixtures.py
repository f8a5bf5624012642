"""Which Linears of a block decide on its experts: routers, and the gates of shared experts.

A mixture is a module with experts below it, in a list or in one tensor, and beside them a Linear with as many outputs
as there are experts (the router) or with one (the gate of a shared expert). They are a ten-thousandth of the weights,
and one token sent to another expert costs more than all that rounding them would save: they stay in full precision.
"""

from torch import nn

from roundel.model.experts import Stack
from roundel.model.linears import LinearView, is_linear, linears_in


def routers(block: nn.Module, prefix: str) -> set[str]:
    """Full names of the Linears of a block that choose or weigh experts; `prefix` is its name.

    Args:
        block: a decoder block, its stacked experts divided.
        prefix: its full name.
    """
    found = set()
    for name, mixture in block.named_modules():
        for key, count in _experts_below(mixture).items():
            for path, module in mixture.named_modules():
                inside = path == key or path.startswith(f"{key}.")
                full = ".".join(part for part in (prefix, name, path) if part)
                if not inside and is_linear(module) and LinearView(full, module).shape[0] in (1, count):
                    found.add(full)
    return found


def _experts_below(module: nn.Module) -> dict[str, int]:
    """Children of a module that are experts, each with their number; itself, where it holds the tensors."""
    found = {}
    for key, child in [("", module), *module.named_children()]:
        stacks = [stack for stack in child.__dict__.values() if isinstance(stack, Stack)]
        if stacks:
            found[key] = len(stacks[0])
        elif key and isinstance(child, nn.ModuleList) and _alike(child):
            found[key] = len(child)
    return found


def _alike(modules: nn.ModuleList) -> bool:
    """Several, with the same Linears inside."""
    shapes = [[view.shape for view in linears_in(member, "")] for member in modules]
    return len(shapes) > 1 and bool(shapes[0]) and all(found == shapes[0] for found in shapes)
