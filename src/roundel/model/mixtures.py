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
            shapes = {path: shape for path, shape in _matrices(mixture) if not _inside(path, key)}
            # One more row: for tokens that no expert gets. A router may have layers before its last one.
            deciding = {
                path.partition(".")[0] for path, shape in shapes.items() if shape[0] in (1, count, count + 1)
            }
            deciding |= {path.partition(".")[0] for path in shapes if "router" in path}
            for path in shapes:
                if path.partition(".")[0] in deciding:
                    full = ".".join(part for part in (prefix, name, path) if part)
                    found.add(full.removesuffix(".weight"))
    return found


def _matrices(mixture: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Parameters of two dimensions by name, with their shape, `[out, in]` for a Linear."""
    found = []
    for path, parameter in mixture.named_parameters():
        owner = mixture.get_submodule(path.rpartition(".")[0])
        linear = is_linear(owner) and path.endswith("weight")
        if parameter.ndim == 2:
            found.append((path, LinearView(path, owner).shape if linear else tuple(parameter.shape)))
    return found


def _inside(path: str, key: str) -> bool:
    """Whether a parameter belongs to the experts: `key`, or the mixture itself where it holds their tensors."""
    return path.startswith(f"{key}.") if key else "." not in path


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
