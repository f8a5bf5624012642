"""What a way of storing weights is."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from roundel.errors import ModelError
from roundel.model.checkpoint import Entry

# The headers are whole where this is said: another copy of the files would be the same.
SAVED_SO = (
    "its files are whole, so it was saved like that; take the original, or a model that was saved whole"
)
Tensors = Mapping[str, torch.Tensor]
Read = Callable[[str], torch.Tensor]


@dataclass(frozen=True)
class Packed:
    """A weight that is stored in parts: the names of the stored tensors by the parts they are, and its own shape."""

    parts: dict[str, str]
    shape: tuple[int, ...]


class Form(Protocol):
    """One way of storing quantized weights."""

    @property
    def summary(self) -> str:
        """What it is, to go after "read from"."""
        ...

    def weights(self, stored: Mapping[str, Entry], read: Read) -> dict[str, Packed]:
        """The quantized weights, under the names that an unquantized checkpoint would have for them.

        Args:
            stored: all tensors of the files.
            read: one of them, for what is not to be seen from the headers.

        Raises:
            ModelError: names a tensor whose counterpart is absent, or of another shape.
        """
        ...

    def is_beside(self, name: str) -> bool:
        """Whether a stored tensor that is part of no weight serves the quantization alone, as scales of inputs do."""
        ...

    def decode(self, name: str, parts: Tensors, dtype: torch.dtype) -> torch.Tensor:
        """The dense weight, in the precision in which it is computed.

        Args:
            name: under which it is asked for.
            parts: the stored tensors.
            dtype: the model's, for a form whose readers compute in it.
        """
        ...


def owners(stored: Iterable[str], part: str) -> list[str]:
    """The modules that have a tensor of this name."""
    return sorted(name.removesuffix(f".{part}") for name in stored if name.endswith(f".{part}"))


def wanted(stored: Mapping[str, Entry], owner: str, parts: Iterable[str]) -> dict[str, str]:
    """The stored names of the parts of a module's weight.

    Raises:
        ModelError: one is absent.
    """
    names = {part: f"{owner}.{part}" for part in parts}
    for name in names.values():
        if name not in stored:
            raise ModelError(
                f"{name} is missing, without which the quantized weight of {owner} cannot be read: a whole model is "
                f"expected; {SAVED_SO}"
            )
    return names


def misfit(name: str, found: object, what: str) -> ModelError:
    """The error about a tensor that does not go with its counterpart."""
    return ModelError(
        f"{name} has the shape {found}, which does not go with {what}: the config.json that came with the weights is "
        f"expected; {SAVED_SO}"
    )
