"""Where the weights of a model are: in memory, or on disk until a part of it is worked on.

transformers opens a checkpoint with its parts mapped to "disk": they become modules without weights, and accelerate
knows which tensor of which safetensors file each weight is (or, where a checkpoint's tensors are not the model's own,
a converted copy in a folder that is given to it). Its hooks, which would fetch weights at every forward pass, are taken
off again; blocks, and what lies around them, are loaded and released here.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from accelerate.hooks import remove_hook_from_module
from safetensors import SafetensorError
from torch import nn

from roundel.errors import ModelError
from roundel.model.blocks import BlockStack
from roundel.model.turns import turn


class Storage(Protocol):
    """Where the weights of blocks are when nobody works on them."""

    def load(self, block: nn.Module, name: str) -> None:
        """Bring the weights of a block, `name` in the model, into memory."""
        ...

    def release(self, block: nn.Module, name: str) -> None:
        """They are expected no more."""
        ...

    def saved(self, block: nn.Module, name: str) -> Callable[[], None]:
        """What brings the weights of a block back to what they are now, unquantized."""
        ...

    def around(self, model: Any, stack: BlockStack) -> AbstractContextManager[None]:
        """What lies around the blocks (embeddings, norms, head) is in memory inside."""
        ...

    def untied(self, name: str) -> None:
        """A tensor was given a value of its own: it stays in memory."""
        ...

    def holds(self, name: str) -> bool:
        """Whether a tensor, by its full name, is to be loaded from here."""
        ...

    def tensor(self, model: Any, name: str) -> torch.Tensor:
        """A tensor of the model, by its full name, wherever it is."""
        ...

    def tensors(self, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """All tensors of the unquantized checkpoint in turn, by name."""
        ...


class InMemory:
    """All weights stay in memory."""

    def load(self, block: nn.Module, name: str) -> None:
        """They are there."""

    def release(self, block: nn.Module, name: str) -> None:
        """They stay."""

    def saved(self, block: nn.Module, name: str) -> Callable[[], None]:
        """From a copy."""
        copy = {key: tensor.clone() for key, tensor in block.state_dict().items()}

        def restore() -> None:
            block.load_state_dict(copy)

        return restore

    def around(self, model: Any, stack: BlockStack) -> AbstractContextManager[None]:
        """It is there."""
        return nullcontext()

    def untied(self, name: str) -> None:
        """Everything stays."""

    def holds(self, name: str) -> bool:
        """Nothing is."""
        return False

    def tensor(self, model: Any, name: str) -> torch.Tensor:
        """Of the model's state."""
        found: torch.Tensor = model.state_dict()[name]
        return found

    def tensors(self, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Of the model's state."""
        yield from sorted(model.state_dict().items())


class OnDisk:
    """Modules without weights until they are loaded.

    Args:
        readers: of every absent tensor, by its full name: a mapping, and its key there.
        tied: the other name of tied tensors.
    """

    def __init__(
        self, readers: dict[str, tuple[Mapping[str, torch.Tensor], str]], tied: dict[str, str]
    ) -> None:
        self._readers, self._tied = readers, tied
        self._untied: set[str] = set()
        self._around = False

    def load(self, block: nn.Module, name: str) -> None:
        """Read the absent tensors of a block."""
        for key, tensor in _tensors_of(block).items():
            if tensor.is_meta:
                put(block, key, self._read(f"{name}.{key}"))

    def release(self, block: nn.Module, name: str) -> None:
        """Leave names and shapes only."""
        for key, tensor in _tensors_of(block).items():
            if f"{name}.{key}" in self._readers:
                put(block, key, tensor.to("meta"))

    def saved(self, block: nn.Module, name: str) -> Callable[[], None]:
        """From the disk."""

        def restore() -> None:
            self.release(block, name)
            self.load(block, name)

        return restore

    @contextmanager
    def around(self, model: Any, stack: BlockStack) -> Iterator[None]:
        """Read it, and release it on exit; nested in itself it does nothing."""
        if self._around:
            yield
            return
        names = [name for name in self._readers if not stack.holds(name)]
        names = [name for name in names if name not in self._untied]
        for name in names:
            put(model, name, self._read(name))
        tie(model)
        self._around = True
        try:
            yield
        finally:
            self._around = False
            for name in set(names) - self._untied:
                put(model, name, model.get_parameter(name).to("meta"))
            tie(model)

    def untied(self, name: str) -> None:
        """It is read no more, though another tensor may lie in the file under its name."""
        self._untied.add(name)

    def holds(self, name: str) -> bool:
        """Under this name."""
        return name in self._readers

    def tensor(self, model: Any, name: str) -> torch.Tensor:
        """Read it, if it is absent."""
        found: torch.Tensor = model.state_dict()[name]
        return self._read(name) if found.is_meta else found

    def tensors(self, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """Read the absent ones."""
        for name, tensor in sorted(model.state_dict().items()):
            yield name, self._read(name) if tensor.is_meta else tensor

    def _read(self, name: str) -> torch.Tensor:
        mapping, key = self._readers[name]
        try:
            try:
                return mapping[key]
            except KeyError:
                # Of tied tensors a checkpoint holds one, under either name.
                mapping, key = self._readers[self._tied[name]]
                return mapping[key]
        except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{name} can no longer be read from the source ({error})") from error


def take_off_hooks(model: nn.Module) -> OnDisk:
    """Turn a model that was opened with a device map into bare modules, and the storage of what is absent.

    Raises:
        ModelError: a tensor is nowhere to be read.
    """
    readers: dict[str, tuple[Mapping[str, torch.Tensor], str]] = {}
    for owner, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        for part in getattr(hook, "hooks", [hook]):
            found = getattr(part, "weights_map", None)
            if found is not None:
                for key, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                    readers[f"{owner}.{key}"] = (found, key)
    # Tied weights under all of their names.
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    absent = {name for name, tensor in named if tensor.is_meta}
    lost = sorted(absent - readers.keys())
    if lost:
        raise ModelError(f"{lost[0]} is neither in memory nor in the source: a whole model is expected")
    remove_hook_from_module(model, recurse=True)
    model.__dict__.pop("hf_device_map", None)
    pairs = getattr(model, "all_tied_weights_keys", {}).items()
    tied = {**{source: target for target, source in pairs}, **dict(pairs)}
    return OnDisk({name: reader for name, reader in readers.items() if name in absent}, tied)


def device_map(model: nn.Module, stack: BlockStack) -> dict[str, str]:
    """Everything that has weights on disk, but for the smallest part of all: accelerate wants one on the CPU.

    Every module is named on its own: a map whose default is `cpu` lets accelerate ask for weights that are not there.
    """
    places: dict[str, str] = {}
    sizes: dict[str, int] = {}

    def visit(module: nn.Module, name: str) -> None:
        for key, _ in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            places[".".join(filter(None, (name, key)))] = "cpu"
        for key, child in module.named_children():
            below = ".".join(filter(None, (name, key)))
            if below in stack.names:
                places[below] = "disk"
            elif any(block.startswith(f"{below}.") for block in stack.names):
                visit(child, below)
            else:
                sizes[below] = sum(tensor.numel() for tensor in child.parameters())
                places[below] = "disk" if sizes[below] else "cpu"

    visit(model, "")
    if "cpu" not in places.values():
        places[min(sizes, key=lambda name: sizes[name])] = "cpu"
    return places


def tie(model: Any) -> None:
    """Make one parameter of those that the config calls one; of a model without weights too."""
    with turn():  # another thread that opens a model takes the method away meanwhile
        model.tie_weights()


def _tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def put(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Make `tensor` the parameter or buffer of that name."""
    path, _, key = name.rpartition(".")
    owner = module.get_submodule(path)
    if key in owner._parameters:
        owner._parameters[key] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[key] = tensor
