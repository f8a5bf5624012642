"""Where the decoder blocks are, found by structure.

A causal language model is embeddings, a stack of blocks and a head. The stack is the list of modules with the most
weight, lists inside other lists (experts, branches) left aside. A model that sees or hears has stacks for that as well,
sometimes larger ones: what it calls its decoder counts then, and in that, the lists that stand beside the embeddings of
text, if any do. Where a second list comes near the heaviest, or there is none, a
guess would be worse than a question: the user is told what was seen, and names the blocks with a pattern. That they
really are a chain, each block fed with the output of the one before, is checked when the model runs (capture.py).
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from roundel.errors import ModelError
from roundel.model.linears import LinearView, is_linear, linears_in
from roundel.model.text_path import text_model

# A list with more than this share of the largest list's weight may be meant just as well.
_RIVAL = 0.5
_HOW_TO_TELL = "name the blocks, or their list, with --blocks PATTERN (as in --blocks 'model.layers.*')"


@dataclass(frozen=True)
class BlockStack:
    """The decoder blocks of a model.

    Attributes:
        name: of what holds them, for example `model.layers`.
        names: full names of the blocks, in order.
        blocks: the blocks themselves.
    """

    name: str
    names: tuple[str, ...]
    blocks: tuple[nn.Module, ...]

    def __len__(self) -> int:
        return len(self.blocks)

    def block_name(self, index: int) -> str:
        """Full name of a block."""
        return self.names[index]

    def holds(self, name: str) -> bool:
        """Whether a module or tensor belongs to a block, by its full name."""
        return self.index_of(name) is not None

    def index_of(self, name: str) -> int | None:
        """The block to which a module or tensor belongs, by its full name; None outside of all."""
        return next((i for i, block in enumerate(self.names) if f"{name}.".startswith(f"{block}.")), None)

    def linears(self, index: int) -> list[LinearView]:
        """The Linears of a block under their full names."""
        return linears_in(self.blocks[index], self.block_name(index))


def find_blocks(model: nn.Module, pattern: str | None = None) -> BlockStack:
    """Find the decoder blocks.

    Args:
        model: names, classes and shapes are looked at; tensors may be absent.
        pattern: of the blocks' full names, or of the list's; None: the heaviest list.

    Raises:
        ModelError: it is not clear which modules are the blocks; says what was seen.
    """
    if pattern is not None:
        return _matching(model, pattern)
    lists = _beside_embeddings(model, _in_decoder(model, _lists(model)))
    by_weight = sorted(lists, key=lambda name: _weight(lists[name]), reverse=True)
    if not by_weight:
        raise ModelError(
            f"no stack of decoder blocks in {type(model).__name__}: a list of modules with Linears is expected, module "
            f"lists found: {_seen(model)}; {_HOW_TO_TELL}"
        )
    name = by_weight[0]
    if len(by_weight) > 1 and _weight(lists[by_weight[1]]) > _RIVAL * _weight(lists[name]):
        seen = ", ".join(f"{name} ({_weight(lists[name])} weights)" for name in by_weight[:4])
        raise ModelError(
            f"several lists in {type(model).__name__} may be its decoder blocks: {seen}; {_HOW_TO_TELL}"
        )
    return _stack(name, list(lists[name].named_children()))


def _in_decoder(model: nn.Module, lists: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Those in what a model calls its decoder, if there are any: not the towers for images or sound beside it."""
    get_decoder: Any = getattr(text_model(model), "get_decoder", None)
    decoder = get_decoder() if get_decoder is not None else None
    inside = {id(module) for module in decoder.modules()} if isinstance(decoder, nn.Module) else set()
    return {name: module for name, module in lists.items() if id(module) in inside} or lists


def _beside_embeddings(model: nn.Module, lists: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Those in the very module that holds the embeddings of text, if there are any."""
    get_embeddings: Any = getattr(text_model(model), "get_input_embeddings", None)
    try:
        embeddings = None if get_embeddings is None else get_embeddings()
    except (NotImplementedError, AttributeError):  # of a class that does not say it
        return lists
    if embeddings is None:
        return lists
    holders = {
        name.rpartition(".")[0] for name, module in model.named_modules() if module is embeddings and name
    }
    return {name: module for name, module in lists.items() if name.rpartition(".")[0] in holders} or lists


def linears_outside(model: nn.Module, stack: BlockStack) -> list[LinearView]:
    """Linears that no block holds: the head, projections around the stack."""
    return [view for view in linears_in(model, "") if not stack.holds(view.name)]


def _matching(model: nn.Module, pattern: str) -> BlockStack:
    depth = pattern.count(".")
    found = [
        (name, module)
        for name, module in model.named_modules()
        if name.count(".") == depth and fnmatchcase(name, pattern)
    ]
    if len(found) == 1 and _is_list(found[0][1]):
        name, only = found[0]
        return _stack(name, list(only.named_children()))
    blocks = [(name, module) for name, module in found if _weight(module)]
    if not any(_multiplies(module) for _, module in blocks):
        raise ModelError(
            f"no module of {type(model).__name__} that holds Linears is named like {pattern!r}: the name of the "
            f"blocks' list, or a pattern of their full names, is expected; module lists found: {_seen(model)}"
        )
    return BlockStack(pattern, tuple(name for name, _ in blocks), tuple(module for _, module in blocks))


def _stack(name: str, members: list[tuple[str, nn.Module]]) -> BlockStack:
    return BlockStack(name, tuple(f"{name}.{key}" for key, _ in members), tuple(m for _, m in members))


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList | nn.Sequential)


def _lists(model: nn.Module) -> dict[str, nn.Module]:
    """Lists whose members may be blocks, those inside others left out."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if name and not inside and _is_list(module) and _may_be_blocks(list(module.children())):
            found[name] = module
    return found


def _may_be_blocks(members: list[nn.Module]) -> bool:
    """Most of them have Linears inside, and none is one itself."""
    with_linears = sum(any(map(is_linear, member.modules())) for member in members)
    return not any(map(is_linear, members)) and 2 * with_linears > len(members)


def _multiplies(module: nn.Module) -> bool:
    """Whether there are Linears in it, or a tensor that may be experts."""
    return any(map(is_linear, module.modules())) or any(p.ndim == 3 for p in module.parameters())


def _weight(module: nn.Module) -> int:
    """Of matrices; experts may still be in one tensor."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim > 1)


def _seen(model: nn.Module) -> str:
    lists = [(name, len(list(m.children()))) for name, m in model.named_modules() if name and _is_list(m)]
    return ", ".join(f"{name} ({count} modules)" for name, count in lists) or "none"
