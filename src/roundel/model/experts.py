"""Experts that share one tensor, seen as the Linears that they are.

transformers keeps the experts of a mixture in parameters [E, out, in], some in [E, in, out], and its code multiplies by
slices of them. No hook ever sees such an expert: code that walks over modules misses most of the model's weights, or
rounds them without having seen an input.

While a model is divided, the name of such a parameter leads its module to a `Stack`, whose items are `Expert`s: Linears
whose weight is a view of the parameter. The model's own code, whatever it does with activations, gates and biases,
multiplies by an item and thereby calls it, hooks and all (torch hands `linear(x, expert)` to the class of an
argument). The parameter itself stays in its place, so that state, storage and checkpoints know nothing of all this. The
rejected alternative, real Linears in place of the tensor, needs the code of every mixture written a second time.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional

from roundel.errors import ModelError
from roundel.model.hints import STORED_TRANSPOSED

# In which transformers' code loops over the experts that are hit, each by its index.
_LOOP = "eager"
# Where a module remembers how it computed them before.
_BEFORE = "_experts_before_division"
_MATMULS = (torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__)


@dataclass(frozen=True)
class _Home:
    """Where a stack's tensor is: it may be replaced there at any time, by another of the same shape.

    Attributes:
        owner: the module that has it.
        key: its name there.
        transposed: it is `[E, in, out]`, not `[E, out, in]`.
    """

    owner: nn.Module
    key: str
    transposed: bool

    @property
    def tensor(self) -> torch.Tensor:
        found = self.owner._parameters[self.key]
        assert found is not None
        return found.detach()


class Expert(nn.Module):
    """One matrix of a stack, as a Linear without bias.

    Args:
        home: of the stack.
        index: of the expert.
    """

    def __init__(self, home: _Home, index: int) -> None:
        super().__init__()
        self.home, self.index = home, index
        # In a list, where it is no parameter of this module: state and storage know the stack alone.
        self._learning: list[nn.Parameter] = []

    @property
    def weight(self) -> nn.Parameter:
        """`[out, in]`, a view of the stack's tensor as it is now."""
        if self._learning:
            return self._learning[0]
        part = self.home.tensor[self.index]
        return nn.Parameter(part.t() if self.home.transposed else part, requires_grad=False)

    def learn(self, on: bool) -> None:
        """While on, the weight is one and the same view, which gradients reach; the stack must stay in its place."""
        self._learning = [self.weight] if on else []

    @property
    def shape(self) -> torch.Size:
        """As it is stored."""
        return self.home.tensor.shape[1:]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x [..., in]` to `[..., out]`."""
        return functional.linear(x, self.weight)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """What the model's code computes with an expert as if it were a tensor."""
        if func is functional.linear:
            return _linear(*args, **(kwargs or {}))
        if func in _MATMULS and len(args) == 2 and isinstance(args[1], cls):
            return _called(args[1], args[0], transposed=True)
        raise _unknown_use(func, args)


class Stack(nn.Module):
    """The experts of one parameter.

    Args:
        home: where it is.
    """

    def __init__(self, home: _Home) -> None:
        super().__init__()
        self.home = home
        for index in range(self.shape[0]):
            self.add_module(str(index), Expert(home, index))

    @property
    def transposed(self) -> bool:
        """Whether it is `[E, in, out]`, not `[E, out, in]`."""
        return self.home.transposed

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Expert]:
        return iter(self.children())  # type: ignore[arg-type]

    def __getitem__(self, index: Any) -> Expert:
        """An expert by its number, which may be a tensor.

        Raises:
            ModelError: several at once.
        """
        if isinstance(index, torch.Tensor) and index.numel() != 1:
            raise _unknown_use(type(self).__getitem__, (self,))
        return self._modules[str(int(index) % len(self))]  # type: ignore[return-value]

    @property
    def shape(self) -> torch.Size:
        """Of the parameter."""
        return self.home.tensor.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameter."""
        return self.home.tensor.dtype

    @property
    def device(self) -> torch.device:
        """Of the parameter."""
        return self.home.tensor.device

    def size(self, dim: int) -> int:
        """Of the parameter."""
        return self.shape[dim]

    @classmethod
    def __torch_function__(
        cls: type[Self], func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """All experts at once, each with its own rows: `x [E, T, in]` times the stack."""
        together = (torch.bmm, torch.Tensor.bmm, *_MATMULS)
        if func in together and len(args) == 2 and isinstance(args[1], cls) and args[0].ndim == 3:
            return torch.stack([_rows(expert, x) for expert, x in zip(args[1], args[0], strict=True)])
        raise _unknown_use(func, args)


def divide(model: nn.Module) -> None:
    """Divide the stacked experts of a model, wherever they are; those that are divided stay so."""
    for name, owner in model.named_modules():
        for key in stacked_in(owner):
            transposed = _stored_transposed(owner, model.get_submodule(name.rpartition(".")[0]), model)
            if transposed is not None and key not in owner.__dict__:
                owner.__dict__[key] = Stack(_Home(owner, key, transposed))
                _choose_loop(owner)


def rejoin(model: nn.Module, keep: Collection[str] = ()) -> None:
    """Undo `divide`, but for the stacks that are named in `keep`."""
    for name, stack in stacks_in(model).items():
        if name not in keep:
            del stack.home.owner.__dict__[stack.home.key]
    if not keep:
        for owner in model.modules():
            before = owner.__dict__.pop(_BEFORE, None)
            if before is not None:
                config: Any = owner.config
                config._experts_implementation_internal = before


def stacks_in(module: nn.Module, prefix: str = "") -> dict[str, Stack]:
    """All divided stacks below `module` by their parameters' full names; `prefix` is the name of `module`."""
    found = {}
    for name, owner in module.named_modules():
        for key, value in owner.__dict__.items():
            if isinstance(value, Stack):
                found[".".join(part for part in (prefix, name, key) if part)] = value
    return found


def joined(tensors: dict[str, torch.Tensor], stacks: dict[str, Stack]) -> dict[str, torch.Tensor]:
    """Tensors under the names that a model's state has for them: `S.0.weight`, `S.1.weight`, ... as one `S`.

    Args:
        tensors: by name; of a stack either all experts `[out, in]` or none. Changed in place, so that no more than one
            stack is in memory twice.
        stacks: of the model, by full name.
    """
    for name, stack in stacks.items():
        keys = [f"{name}.{index}.weight" for index in range(len(stack))]
        if keys[0] in tensors:
            parts = [tensors.pop(key) for key in keys]
            tensors[name] = torch.stack([part.t() if stack.transposed else part for part in parts])
    return tensors


def unquantized(
    state: dict[str, torch.Tensor], stacks: dict[str, Stack], quantized: Collection[str]
) -> dict[str, torch.Tensor]:
    """The tensors of a state that are no quantized Linear's weight.

    Args:
        state: by full name.
        stacks: of the model, by full name. One in which some experts are quantized is taken apart for the others.
        quantized: names of Linears.
    """
    found = {}
    for name, tensor in state.items():
        experts = [f"{name}.{index}" for index in range(len(stacks[name]))] if name in stacks else []
        if not any(expert in quantized for expert in experts):
            if name.removesuffix(".weight") not in quantized:
                found[name] = tensor
            continue
        for expert, part in zip(experts, tensor, strict=True):
            if expert not in quantized:
                found[f"{expert}.weight"] = part.t() if stacks[name].transposed else part
    return found


def stacked_in(owner: nn.Module) -> list[str]:
    """The parameters of a module, by their names there, that may hold a matrix for each expert."""
    if type(owner).__module__.startswith("torch.nn"):
        return []  # a convolution
    return [
        k for k, p in owner._parameters.items() if p is not None and p.ndim == 3 and p.is_floating_point()
    ]


def _stored_transposed(owner: nn.Module, parent: nn.Module, model: nn.Module) -> bool | None:
    """Whether a module's stacks are `[E, in, out]`: it says so, we were told, or shapes say it; None: nobody knows.

    Shapes are only asked where there is something that may be a router, a matrix with a row for each expert.
    """
    said = getattr(owner, "is_transposed", STORED_TRANSPOSED.get(type(owner).__name__))
    if said is not None:
        return bool(said)
    width = getattr(getattr(model, "config", None), "hidden_size", None)
    # The first matrix of an expert reads the hidden state.
    first = owner._parameters[stacked_in(owner)[0]]
    assert first is not None
    routed = any(p.ndim == 2 and p.shape[0] == first.shape[0] for p in parent.parameters())
    if not routed or width is None or (first.shape[1] == width) == (first.shape[2] == width):
        return None
    return bool(first.shape[1] == width)


def _choose_loop(owner: nn.Module) -> None:
    """Of the ways in which transformers computes experts, the one that takes them one after the other."""
    config = getattr(owner, "config", None)
    chosen = getattr(config, "_experts_implementation_internal", None)
    if chosen is not None and chosen != _LOOP:
        owner.__dict__[_BEFORE] = chosen
        config._experts_implementation_internal = _LOOP  # type: ignore[union-attr]


def _linear(input: torch.Tensor, weight: Expert, bias: torch.Tensor | None = None) -> torch.Tensor:
    output = _called(weight, input, transposed=False)
    return output if bias is None else output + bias


def _called(expert: Expert, x: torch.Tensor, *, transposed: bool) -> torch.Tensor:
    home = expert.home
    if home.transposed != transposed:
        stored, used = ("[in, out]", "[out, in]") if home.transposed else ("[out, in]", "[in, out]")
        raise ModelError(
            f"{type(home.owner).__name__}.{home.key} was taken for experts stored as {stored}, and the model uses "
            f"them as {used}: add is_transposed = {transposed} to the class, or leave them out with skip"
        )
    output: torch.Tensor = expert(x)
    return output


def _rows(expert: Expert, x: torch.Tensor) -> torch.Tensor:
    """An expert on the rows that belong to it: the others were zeroed, so their outputs are zero too."""
    mine = x.detach().ne(0).any(-1)
    computed = _called(expert, x[mine], transposed=True)
    output = computed.new_zeros(*x.shape[:-1], computed.shape[-1])
    output[mine] = computed
    return output


def _unknown_use(func: Callable[..., Any], args: tuple[Any, ...]) -> ModelError:
    home = next(item for item in args if isinstance(item, Expert | Stack)).home
    return ModelError(
        f"{type(home.owner).__name__} computes with its stacked experts {home.key} in a way that Roundel does not "
        f"know ({getattr(func, '__name__', func)}): leave them out, with --set skip=['*.{home.key}.*']"
    )
