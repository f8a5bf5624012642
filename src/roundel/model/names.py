"""Under which names a checkpoint keeps the Linears of a model.

transformers renames and merges tensors when it loads a checkpoint (the experts of a mixture, each in tensors of its
own, become one) and undoes it when it saves. A container that stores packed codes has to write them under the names of
the checkpoint, split as the checkpoint splits them. Which names, and which rows, is not written down here a second
time: transformers itself is asked to save tensors whose entries are the numbers of their rows.
"""

from bisect import bisect
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)

from roundel.model.experts import Stack


@dataclass(frozen=True)
class Part:
    """Rows of a Linear that a checkpoint keeps as a Linear of its own.

    Attributes:
        name: in the checkpoint.
        rows: of the model's Linear, in the checkpoint's order.
    """

    name: str
    rows: slice | torch.Tensor


def stored_parts(model: Any, linears: Collection[str], stacks: dict[str, Stack]) -> dict[str, list[Part]]:
    """The parts of each Linear, in order of their rows; none where a checkpoint does not keep it as Linears.

    Args:
        model: its names and shapes; tensors may be absent.
        linears: full names of Linears that store `[out, in]`, and of experts.
        stacks: of the model, by full name.
    """
    counter = _RowCounter()
    counted: dict[str, torch.Tensor] = {}
    for name in linears:
        stack_name = name.rpartition(".")[0]
        stack = stacks.get(stack_name)
        if stack is None:
            counted[f"{name}.weight"] = counter.count([name], len(model.get_submodule(name).weight))[0]
        elif stack_name not in counted:
            names = [f"{stack_name}.{index}" for index in range(len(stack))]
            rows = counter.count(names, len(stack[0].weight))
            counted[stack_name] = rows.transpose(1, 2) if stack.transposed else rows
    found: dict[str, list[tuple[int, Part]]] = {name: [] for name in linears}
    with own_parameters(model):
        reverted = revert_weight_conversion(model, counted)
    for stored, numbers in reverted.items():
        if numbers.ndim != 2 or not stored.endswith(".weight"):
            continue
        owner, rows = counter.find(numbers[:, 0])
        if owner in found:
            part = Part(stored.removesuffix(".weight"), _sliced(rows))
            found[owner].append((int(rows[0]), part))
    return {name: [part for _, part in sorted(parts, key=_first)] for name, parts in found.items()}


def stored_tensors(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Ordinary tensors as a checkpoint keeps them."""
    with own_parameters(model):
        found: dict[str, torch.Tensor] = revert_weight_conversion(model, tensors)
    return found


@contextmanager
def own_parameters(model: Any) -> Iterator[None]:
    """Inside, stacked experts count as parameters though they are divided: some conversions ask for their shapes."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    own = model.get_parameter
    model.get_parameter = lambda name: parameters[name] if name in parameters else own(name)
    try:
        yield
    finally:
        del model.get_parameter


def loaded_names(model: Any, stored: Iterable[str]) -> dict[str, str]:
    """The model's name for each tensor of a checkpoint that it takes over as it is; merged ones are left out.

    Args:
        model: its names and shapes; tensors may be absent.
        stored: names in the checkpoint.
    """
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    known = {**model.state_dict(), **dict(model.named_buffers())}
    found = {}
    for name in stored:
        loaded, merged = rename_source_key(name, renamings, converters, model.base_model_prefix, known)
        if merged is None:
            found[name] = loaded
    return found


class _RowCounter:
    """Gives every row of every Linear a number."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._firsts: list[int] = []
        self._heights: list[int] = []
        self._next = 0

    def count(self, names: list[str], height: int) -> torch.Tensor:
        """`[len(names), height, 1]`: the rows of some Linears."""
        first = self._next
        for name in names:
            self._names.append(name)
            self._firsts.append(self._next)
            self._heights.append(height)
            self._next += height
        return torch.arange(first, self._next).view(len(names), height, 1)

    def find(self, numbers: torch.Tensor) -> tuple[str | None, torch.Tensor]:
        """Whose rows these are, if all are of one Linear, and which."""
        owner = bisect(self._firsts, int(numbers[0])) - 1
        rows = numbers - self._firsts[owner]
        same = int(rows.min()) >= 0 and int(rows.max()) < self._heights[owner]
        return self._names[owner] if same else None, rows


def _sliced(rows: torch.Tensor) -> slice | torch.Tensor:
    first, last = int(rows[0]), int(rows[-1])
    together = torch.equal(rows, torch.arange(first, first + len(rows)))
    return slice(first, last + 1) if together else rows


def _first(place: tuple[int, Part]) -> int:
    return place[0]
