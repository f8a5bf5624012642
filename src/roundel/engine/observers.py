"""What the Linears of a block are fed with: which of them share an input, and the statistics of it.

q, k and v of an attention, gate and up of an MLP read the same tensor. Second moments are `in x in`, so they
are collected once per distinct input, which is found by watching a pass rather than by name.
"""

import re
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Self

import torch
from torch import nn

from roundel.engine.moments import Hessian, HessianDiagonal, squares
from roundel.model.linears import LinearView
from roundel.system.ranks import Ranks

Listen = Callable[[torch.Tensor], None]

# Hessians that are collected in one pass: those of a dense block fit; a block with hundreds of experts takes several.
HESSIAN_BYTES = 4 << 30


class Watch:
    """Tells `listen` functions of the inputs of Linears while a block runs."""

    def __init__(self, listeners: list[tuple[LinearView, Listen]]) -> None:
        self._hooks = ExitStack()
        for view, listen in listeners:
            hook = view.module.register_forward_pre_hook(_told(listen))
            self._hooks.callback(hook.remove)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.close()


def _told(listen: Listen) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    def hook(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        listen(args[0])

    return hook


class OncePerInput:
    """Numbers of an input `[..., in]`, computed once where Linears are handed the same tensor one after the other.

    q, k and v are, gate and up too.

    Args:
        compute: what is asked of an input.
    """

    def __init__(self, compute: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._compute = compute
        self._last: tuple[weakref.ref[torch.Tensor], int, torch.Tensor] | None = None

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        if self._last is not None:
            last, version, found = self._last
            if last() is inputs and version == inputs._version:
                return found
        found = self._compute(inputs)
        self._last = weakref.ref(inputs), inputs._version, found
        return found


class TokenCounts(Watch):
    """Counts the tokens that reach each Linear while a block runs: not all, where a router sends them to experts."""

    def __init__(self, linears: list[LinearView]) -> None:
        self.seen = {view.name: 0 for view in linears}
        super().__init__([(view, self._counting(view.name)) for view in linears])

    def _counting(self, name: str) -> Listen:
        def count(inputs: torch.Tensor) -> None:
            self.seen[name] += inputs.shape[:-1].numel()

        return count

    def reduce(self, ranks: Ranks) -> None:
        """Count what other ranks have seen."""
        totals = ranks.sum(torch.tensor(list(self.seen.values()), dtype=torch.float64))
        self.seen = {name: int(total) for name, total in zip(self.seen, totals.tolist(), strict=True)}


class InputSizes(Watch):
    """Collects max|x_j| of every input channel while a block runs, for the report."""

    def __init__(self, linears: list[LinearView]) -> None:
        self.linears = linears
        self._largest: dict[str, torch.Tensor] = {}
        self._sizes = OncePerInput(_sizes)
        super().__init__([(view, self._looking(view.name)) for view in linears])

    def _looking(self, name: str) -> Listen:
        def look(inputs: torch.Tensor) -> None:
            if inputs.numel():
                sizes, before = self._sizes(inputs), self._largest.get(name)
                self._largest[name] = sizes if before is None else torch.maximum(before, sizes)

        return look

    def reduce(self, ranks: Ranks) -> None:
        """See what other ranks have seen."""
        if ranks.size == 1:
            return
        none_seen = -1.0
        sizes = [
            self._largest[view.name].cpu()
            if view.name in self._largest
            else torch.full((width,), none_seen, dtype=torch.float32)
            for view in self.linears
            for width in view.shape[1:]
        ]
        joined = ranks.max(torch.cat(sizes)) if sizes else torch.empty(0, dtype=torch.float32)
        parts = joined.split([len(part) for part in sizes])
        named = zip((view.name for view in self.linears), parts, strict=True)
        self._largest = {name: part for name, part in named if part[0] != none_seen}

    @property
    def largest(self) -> dict[str, torch.Tensor]:
        """max|x|, `[in]` fp32 by name, on the CPU; nothing of a Linear that saw no token."""
        return {name: sizes.cpu() for name, sizes in self._largest.items()}


def _sizes(inputs: torch.Tensor) -> torch.Tensor:
    """`max_t |x_tj|`, `[in]` fp32: both extremes, in two passes without a copy of the rows."""
    rows = inputs.detach().flatten(0, -2)
    return torch.maximum(rows.amax(0), -rows.amin(0)).float()


class InputStatistics(Watch):
    """Collects each Linear's `mean x_j^2` while a block runs."""

    def __init__(self, linears: list[LinearView]) -> None:
        self.linears = linears
        self.diagonals = {view.name: HessianDiagonal() for view in linears}
        self._squares = OncePerInput(squares)
        super().__init__([(view, self._adding(self.diagonals[view.name])) for view in linears])

    def _adding(self, diagonal: HessianDiagonal) -> Listen:
        def add(inputs: torch.Tensor) -> None:
            diagonal.add(self._squares(inputs), inputs.shape[:-1].numel())

        return add

    def reduce(self, ranks: Ranks) -> None:
        """Count what other ranks have seen."""
        for view in self.linears:
            self.diagonals[view.name].reduce(ranks, view.shape[1], view.weight.device)

    def mean_of(self, name: str) -> torch.Tensor | None:
        """`[in]`, or None for a Linear that was not watched or saw no token."""
        return self.diagonals[name].mean() if name in self.diagonals else None


class InputHessians(Watch):
    """Collects H once for every set of Linears that share their input."""

    def __init__(self, sharing: list[list[LinearView]]) -> None:
        self.sharing = sharing
        self.hessians = [Hessian() for _ in sharing]
        leaders = [views[0] for views in sharing]
        super().__init__([(v, h.add) for v, h in zip(leaders, self.hessians, strict=True)])

    def reduce(self, ranks: Ranks) -> None:
        """Count what other ranks have seen."""
        for views, hessian in zip(self.sharing, self.hessians, strict=True):
            hessian.reduce(ranks, views[0].shape[1], views[0].weight.device)


def tensor_key(tensor: torch.Tensor) -> tuple[int, ...]:
    """The same for two tensors if they are one, as long as both are alive."""
    return (tensor.data_ptr(), tensor._version, *tensor.shape)


def sharing_inputs(run_block: Callable[[], object], linears: list[LinearView]) -> list[list[LinearView]]:
    """Linears grouped by the tensor that they read, in the order of their first call.

    Args:
        run_block: runs the block once, on any input.
        linears: its Linears. One that is not called (an expert without tokens) makes a group of its own.
    """
    seen: list[torch.Tensor] = []  # keeps each input alive, so that no address is used twice
    groups: dict[tuple[int, ...], list[LinearView]] = {}

    def listener(view: LinearView) -> Listen:
        def listen(inputs: torch.Tensor) -> None:
            seen.append(inputs)
            groups.setdefault(tensor_key(inputs), []).append(view)

        return listen

    with Watch([(view, listener(view)) for view in linears]):
        run_block()
    found: list[list[LinearView]] = []
    grouped: set[str] = set()
    for views in groups.values():
        fresh = [view for view in views if view.name not in grouped]
        grouped |= {view.name for view in fresh}
        if fresh:
            found.append(fresh)
    return found + [[view] for view in linears if view.name not in grouped]


def in_stages(sharing: list[list[LinearView]], *, one_by_one: bool) -> list[list[list[LinearView]]]:
    """Sets of Linears that share an input, together as far as their Hessians fit into memory.

    Args:
        sharing: the sets, in the order of their first call.
        one_by_one: each by itself, but for counterparts in different experts, which do not feed each other.
    """
    parts: dict[object, list[list[LinearView]]] = {}
    for views in sharing:
        parts.setdefault(counterparts(views[0]) if one_by_one else None, []).append(views)
    return [stage for part in parts.values() for stage in _bounded(part)]


def hessian_bytes(sharing: list[list[LinearView]]) -> int:
    """Of all sets together, fp32."""
    return sum(4 * views[0].shape[1] ** 2 for views in sharing)


def _bounded(sharing: list[list[LinearView]]) -> list[list[list[LinearView]]]:
    stages: list[list[list[LinearView]]] = []
    for views in sharing:
        if not stages or hessian_bytes([*stages[-1], views]) > HESSIAN_BYTES:
            stages.append([])
        stages[-1].append(views)
    return stages


def counterparts(view: LinearView) -> tuple[str, tuple[int, int]]:
    """The same for Linears of a block that do the same work in different experts: name without numbers, and shape."""
    return re.sub(r"\d+", "*", view.name), view.shape
