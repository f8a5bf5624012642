"""What the Linears of a block are fed with: which of them share an input, and the statistics of it.

q, k and v of an attention, gate and up of an MLP read the same tensor. Second moments are `in x in`, so they
are collected once per distinct input, which is found by watching a pass rather than by name.
"""

from collections.abc import Callable
from contextlib import ExitStack

import torch

from roundel.methods.hessian import Hessian, HessianDiagonal
from roundel.model.linears import LinearView


class Watch:
    """Tells `add` functions of the inputs of Linears while a block runs."""

    def __init__(self, listeners: dict[str, tuple[LinearView, Callable[[torch.Tensor], None]]]) -> None:
        self._hooks = ExitStack()
        for view, listen in listeners.values():
            hook = view.module.register_forward_pre_hook(
                lambda module, args, listen=listen: listen(args[0])
            )
            self._hooks.callback(hook.remove)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *exception: object) -> None:
        self._hooks.close()


class InputStatistics(Watch):
    """Collects each Linear's `mean x_j^2` while a block runs."""

    def __init__(self, linears: list[LinearView]) -> None:
        self.diagonals = {view.name: HessianDiagonal() for view in linears}
        super().__init__({view.name: (view, self.diagonals[view.name].add) for view in linears})

    def mean_of(self, name: str) -> torch.Tensor | None:
        """`[in]`, or None for a Linear that was not watched or saw no token."""
        return self.diagonals[name].mean() if name in self.diagonals else None


class InputHessians(Watch):
    """Collects H once for every set of Linears that share their input."""

    def __init__(self, sharing: list[list[LinearView]]) -> None:
        self.sharing = sharing
        self.hessians = [Hessian() for _ in sharing]
        leaders = [(views[0], hessian.add) for views, hessian in zip(sharing, self.hessians, strict=True)]
        super().__init__({view.name: (view, add) for view, add in leaders})


def sharing_inputs(run_block: Callable[[], object], linears: list[LinearView]) -> list[list[LinearView]]:
    """Linears grouped by the tensor that they read, in the order of their first call.

    Args:
        run_block: runs the block once, on any input.
        linears: its Linears. One that is not called (an expert without tokens) makes a group of its own.
    """
    seen: list[torch.Tensor] = []  # keeps each input alive, so that no address is used twice
    groups: dict[tuple[int, ...], list[LinearView]] = {}

    def listen(view: LinearView, inputs: torch.Tensor) -> None:
        seen.append(inputs)
        key = (inputs.data_ptr(), inputs.storage_offset(), inputs._version, *inputs.shape)
        groups.setdefault(key, []).append(view)

    with Watch({v.name: (v, lambda inputs, v=v: listen(v, inputs)) for v in linears}):
        run_block()
    found: list[list[LinearView]] = []
    grouped: set[str] = set()
    for views in groups.values():
        fresh = [view for view in views if view.name not in grouped]
        grouped |= {view.name for view in fresh}
        if fresh:
            found.append(fresh)
    return found + [[view] for view in linears if view.name not in grouped]
