"""What a container is: it can say no before the work, write after it, and show that what it wrote is right."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from roundel.activations.scheme import Activations
from roundel.formats.content import Content
from roundel.formats.decoded import Decoded
from roundel.formats.readers import Readers
from roundel.formats.source_files import SourceFiles
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme

Integers = Callable[[str], QuantizedWeight]
"""Gives those of a Linear by its name."""


@dataclass(frozen=True)
class Layer:
    """A Linear that a container is to carry."""

    name: str
    kind: str  # class of the module
    shape: tuple[int, int]  # (out, in)
    scheme: Scheme
    bias: bool = False
    outliers: bool = False  # may have some
    permuted: bool = False  # codes in another order than the input channels
    embedding: bool = False  # the input embedding


class Container(Protocol):
    """One output format.

    Attributes:
        name: in recipes.
        whole: its file says all that a config and a tokenizer say, which are not written beside it then; tensors for
            which the model's class has no place have none there either.
        others: type in which it writes whatever floating point is not quantized; None: as the source has it, or finer.
    """

    name: str
    whole: bool
    others: torch.dtype | None

    def check(self, layers: list[Layer], model: Any, activations: Activations, files: SourceFiles) -> None:
        """Raise FormatError, naming a layer and a way out, for what the container cannot carry.

        Args:
            layers: that are to be quantized.
            model: its names and shapes; tensors may be absent.
            activations: how they are quantized.
            files: that the model came from.
        """
        ...

    def kept(self, model: Any, files: SourceFiles) -> Mapping[str, str]:
        """Types of matrices in the model's own file, by their names, where the container takes over from there what is
        not quantized, or is to have that very type."""
        ...

    def scheme_for(self, scheme: Scheme, in_features: int, dtype: torch.dtype) -> Scheme:
        """The scheme by which weights that were tuned for another format may go into this one (grid/equivalent.py).

        Args:
            scheme: in which they were tuned.
            in_features: of a row.
            dtype: of the model.
        """
        ...

    def readers(self, layers: list[Layer], model: Any, activations: Activations) -> Readers:
        """Which clients will open it; for arguments that `check` has passed."""
        ...

    def write(self, folder: Path, content: Content) -> None:
        """Write config and weights into an existing empty folder.

        What Roundel needs to quantize activations is written by the caller; a container adds what its own clients
        read.
        """
        ...

    def verify(self, folder: Path, content: Content, trust_remote_code: bool) -> None:
        """Raise FormatError where the written folder differs from what was tuned, bit for bit."""
        ...

    def decoded(self, folder: Path, trust_remote_code: bool, *, streamed: bool) -> Decoded | None:
        """The tensors of a folder in this format, decoded as they are read; None where transformers opens it better.

        Args:
            folder: of this format, whoever wrote it.
            trust_remote_code: run modeling code that comes with it.
            streamed: the weights are to stay on disk, which transformers cannot do.

        Raises:
            ModelError: it cannot be read.
        """
        ...

    def integers(self, folder: Path, model: Any, schemes: Mapping[str, Scheme]) -> Integers:
        """The integers of a folder that `write` has filled, which are read when they are asked for.

        They dequantize to the same numbers, bit for bit; of an order of columns only the groups are kept.

        Args:
            folder: of this format.
            model: names and shapes; tensors may be absent.
            schemes: of its quantized Linears, as they were tuned.

        Raises:
            RoundelError: the files are damaged, or those of other schemes; so does what is returned.
        """
        ...


class OfFolders:
    """What containers have in common that stand in a folder beside a config and a tokenizer."""

    whole = False
    others: torch.dtype | None = None

    def kept(self, model: Any, files: SourceFiles) -> Mapping[str, str]:
        """None: what is read is decoded."""
        return {}

    def scheme_for(self, scheme: Scheme, in_features: int, dtype: torch.dtype) -> Scheme:
        """The same."""
        return scheme
