"""What a container writes: a quantized model, one piece at a time, so that no more than a piece need be in memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from roundel.activations.attach import ActivationQuantizer
from roundel.activations.scheme import Activations
from roundel.formats.source_files import SourceFiles
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.model.experts import Stack, stacks_in
from roundel.model.extra_tensors import ExtraTensors
from roundel.model.linears import LinearView
from roundel.model.names import Part, stored_parts
from roundel.model.stored_types import StoredTypes


@dataclass(frozen=True)
class Piece:
    """Part of a quantized model, by full names: a decoder block, the head, or what lies around the blocks.

    Attributes:
        weights: the integers of its quantized Linears.
        others: every other tensor that a checkpoint stores.
    """

    weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    others: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Content:
    """A quantized model.

    Attributes:
        model: its config, its modules' names, classes and shapes; tensors may be absent.
        schemes: the grid of every quantized Linear.
        read_pieces: a fresh pass over all pieces, in order, in the model's types.
        activations: attached to the model, where activations are quantized.
        whole: all of it fits into memory a second time.
        blocks: pattern of the decoder blocks' names, where they are not found by themselves.
        extra: tensors of the source's checkpoint that are carried over, under their names there.
        types: those of the source's checkpoint.
        files: that the model came from.
        label: the mixture or type of GGUF files that the recipe names; empty where it names none.
    """

    model: Any
    schemes: dict[str, Scheme]
    read_pieces: Callable[[], Iterator[Piece]]
    activations: ActivationQuantizer | None = None
    whole: bool = True
    blocks: str | None = None
    extra: ExtraTensors = field(default_factory=ExtraTensors)
    types: StoredTypes | None = None
    files: SourceFiles = field(default_factory=SourceFiles)
    label: str = ""

    def written_pieces(self) -> Iterator[Piece]:
        """The same in the types of the source's checkpoint."""
        for piece in self.read_pieces():
            if self.types is None:
                yield piece
            else:
                restored = {name: self.types.restored(name, t) for name, t in piece.others.items()}
                yield Piece(piece.weights, restored)

    @property
    def grids(self) -> Activations:
        """Of the activations."""
        return self.activations.grids if self.activations else Activations()

    @cached_property
    def stacks(self) -> dict[str, Stack]:
        """Experts that share a tensor, by its name."""
        return stacks_in(self.model)

    @cached_property
    def parts(self) -> dict[str, list[Part]]:
        """As what checkpoints keep each quantized Linear."""
        return stored_parts(self.model, self.schemes, self.stacks)

    def view(self, name: str) -> LinearView:
        """A quantized Linear."""
        return LinearView(name, self.model.get_submodule(name))
