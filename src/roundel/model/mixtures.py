"""Which matrices of a block decide on its experts: routers, and the gates of shared experts.

A mixture is a module with experts below it, in a list or in one tensor, and beside them a matrix with as many rows as
there are experts (the router) or with one (the gate of a shared expert), be it a Linear's or not. They are a
ten-thousandth of the weights, and one token sent to another expert costs more than all that rounding them would save:
they stay in full precision.
"""

from torch import nn

from roundel.model.experts import Stack
from roundel.model.linears import LinearView, is_linear, linears_in


def routers(block: nn.Module, prefix: str) -> set[str]:
    """Full names of what chooses or weighs the experts of a block: modules with such a weight, or parameters.

    Args:
        block: a decoder block, its stacked experts divided.
        prefix: its full name.
    """
    found = set()
    for name, mixture in block.named_modules():
        for key, count in _experts_below(mixture).items():
            for path, parameter in mixture.named_parameters():
                owner = mixture.get_submodule(path.rpartition(".")[0])
                rows = LinearView(path, owner).shape[0] if is_linear(owner) else parameter.shape[0]
                inside = path.startswith(f"{key}.") if key else "." not in path
                if parameter.ndim == 2 and rows in (1, count) and not inside:
                    full = ".".join(part for part in (prefix, name, path) if part)
                    found.add(full.removesuffix(".weight"))
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
