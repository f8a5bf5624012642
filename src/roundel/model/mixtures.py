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
    # However its experts are stored, nobody calls anything else so.
    found = {
        f"{prefix}.{path}".removesuffix(".weight")
        for path, parameter in block.named_parameters()
        if parameter.ndim == 2 and "router" in path
    }
    for name, mixture in block.named_modules():
        for key, count in _experts_below(mixture).items():
            for path in _deciding(mixture, key, count):
                full = ".".join(part for part in (prefix, name, path) if part)
                found.add(full.removesuffix(".weight"))
    return found


def _deciding(mixture: nn.Module, key: str, count: int) -> list[str]:
    """Matrices of a mixture that choose among its `count` experts, which are its child `key`."""
    beside: dict[str, list[tuple[str, bool]]] = {}
    for path, parameter in mixture.named_parameters():
        if parameter.ndim == 2 and not _inside(path, key):
            beside.setdefault(path.partition(".")[0], []).append((path, _like_a_router(mixture, path, count)))
    found = []
    for matrices in beside.values():
        # A router may have layers before its last one.
        whole = matrices[-1][1]
        found += [path for path, alike in matrices if whole or alike]
    return found


def _like_a_router(mixture: nn.Module, path: str, count: int) -> bool:
    """A row for each expert, or one more, for tokens that no expert gets; a Linear may have a single one."""
    owner = mixture.get_submodule(path.rpartition(".")[0])
    if is_linear(owner) and path.endswith("weight"):
        return LinearView(path, owner).shape[0] in (1, count, count + 1)
    return mixture.get_parameter(path).shape[0] in (count, count + 1)


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
