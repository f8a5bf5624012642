"""What GPTQ's, AWQ's and AutoRound's formats have in common.

A quantized Linear is kept under its name in the checkpoint as `qweight`, `qzeros` and `scales` (integer_layouts.py), in
parts where checkpoints have it in parts; everything else as the source has it. config.json says the rest in each
format's own words. Clients multiply in the model's type, or in float16, so scales are stored in the type in which they
were tuned, and that must be one which the model holds.

The folder is read back by the readers of foreign checkpoints (model/stored/), which opens it in Roundel, too.
"""

import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from roundel.activations.scheme import Activations
from roundel.errors import FormatError
from roundel.formats.container import Integers, Layer, OfFolders
from roundel.formats.content import Content
from roundel.formats.decoded import Decoded
from roundel.formats.integer_layouts import rows_of
from roundel.formats.joined_rows import joined_rows
from roundel.formats.kernel_clients import Facts, facts_of
from roundel.formats.plain_grid import WAYS_OUT, parts_in_checkpoints, refuse_beyond_the_grid
from roundel.formats.readers import Readers
from roundel.formats.reload import compare_streamed
from roundel.formats.shards import ShardReader, Tensors, write_model
from roundel.formats.source_files import SourceFiles
from roundel.formats.written_groups import common_group, dividing_group, with_split
from roundel.grid.equivalent import as_plain
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.model.experts import stacks_in
from roundel.model.names import stored_parts, stored_tensors
from roundel.model.text_path import text_model

_WORD = 32
# The smallest group to which kernels take a split.
_SMALLEST_GROUP = 16
Schemes = Mapping[str, Scheme]


class KernelLayout(OfFolders, ABC):
    """A format of integers in words of 32 bits."""

    name: str
    _widths: ClassVar[tuple[int, ...]]
    _order: ClassVar[bool] = False  # carries codes in another order than the input channels

    @abstractmethod
    def _multiple(self, bits: int) -> tuple[int, int]:
        """What inputs and outputs must be multiples of."""

    @abstractmethod
    def _tensors(self, weight: QuantizedWeight, written: Scheme, schemes: Collection[Scheme]) -> Tensors:
        """Of a layer; `schemes` are those of all layers, as they are written."""

    @abstractmethod
    def _weight(self, tensors: Tensors, scheme: Scheme, schemes: Collection[Scheme]) -> QuantizedWeight:
        """Undo `_tensors`; `scheme` is that of the layer as it was tuned, `schemes` are those of all."""

    @abstractmethod
    def _about(self, content: Content, schemes: Schemes) -> dict[str, Any]:
        """The quantization config."""

    @abstractmethod
    def _readers(self, facts: Facts) -> Readers:
        """By what clients differ about."""

    def _refuse(self, schemes: Schemes) -> None:
        """Raise FormatError for what only this format does not carry, by the schemes as they are written."""

    def check(self, layers: list[Layer], model: Any, activations: Activations, files: SourceFiles) -> None:
        """Refuse anything beyond a plain grid, widths, types and sizes that the layout does not have.

        Raises:
            FormatError: names the layer and a way out.
        """
        if activations:
            raise FormatError(
                f"quantized activations are not carried by {self.name}, whose clients would compute with others: use "
                "--format compressed-tensors, --format roundel, or --format dense"
            )
        refuse_beyond_the_grid(layers, self.name, order=self._order)
        for layer in layers:
            if layer.scheme.bits not in self._widths:
                known = ", ".join(map(str, self._widths))
                raise FormatError(
                    f"{layer.name} has {layer.scheme.bits} bits, and {self.name} carries {known}: set bits, or "
                    f"{WAYS_OUT}"
                )
            _refuse_scales(layer, model.dtype, self.name)
        parts = parts_in_checkpoints(layers, model, self.name)
        for layer in layers:
            for part in parts[layer.name]:
                rows = part.rows
                out = (
                    len(rows) if isinstance(rows, torch.Tensor) else len(range(*rows.indices(layer.shape[0])))
                )
                self._refuse_sizes(layer, out)
        self._refuse(_written({layer.name: layer.scheme for layer in layers}, _widths_of(layers), self.name))

    def _refuse_sizes(self, layer: Layer, out: int) -> None:
        inputs, outputs = self._multiple(layer.scheme.bits)
        if layer.shape[1] % inputs or out % outputs:
            raise FormatError(
                f"{layer.name} is {out}x{layer.shape[1]}, and {self.name} packs {layer.scheme.bits} bits for outputs "
                f"in multiples of {outputs} and inputs in multiples of {inputs}: leave it out with skip, or {WAYS_OUT}"
            )

    def scheme_for(self, scheme: Scheme, in_features: int, dtype: torch.dtype) -> Scheme:
        """A plain grid, with scales in a type that clients keep."""
        plain, held = as_plain(scheme), str(dtype).removeprefix("torch.")
        if held == "float32":
            held = "float16" if plain.scale_dtype == "float32" else plain.scale_dtype
        return plain if plain.two_level else plain.model_copy(update={"scale_dtype": held})

    def readers(self, layers: list[Layer], model: Any, activations: Activations) -> Readers:
        """By the grids, and by what has been tried."""
        schemes = _written({layer.name: layer.scheme for layer in layers}, _widths_of(layers), self.name)
        found = self._readers(facts_of(layers, schemes.values(), model, head_name(model)))
        return with_split(found, layers, schemes.values())

    def write(self, folder: Path, content: Content) -> None:
        """Write config.json and safetensors."""
        model = content.model
        widths = {name: content.view(name).shape[1] for name in content.schemes}
        schemes = _written(content.schemes, widths, self.name)
        model.config.quantization_config = self._about(content, schemes)
        try:
            write_model(folder, model, self._pieces(content, schemes), converted=True, extra=content.extra)
        finally:
            # The model in memory holds ordinary weights.
            del model.config.quantization_config

    def _pieces(self, content: Content, schemes: Schemes) -> Iterator[Tensors]:
        kinds = set(schemes.values())
        for piece in content.written_pieces():
            tensors = stored_tensors(content.model, piece.others) if piece.others else {}
            for name, weight in piece.weights.items():
                for part in content.parts[name]:
                    made = self._tensors(rows_of(weight, part.rows), schemes[name], kinds)
                    tensors |= {f"{part.name}.{key}": tensor for key, tensor in made.items()}
            yield tensors

    def verify(self, folder: Path, content: Content, trust_remote_code: bool) -> None:
        """Read the folder back, a piece at a time."""
        compare_streamed(folder, content, trust_remote_code)

    def decoded(self, folder: Path, trust_remote_code: bool, *, streamed: bool) -> Decoded | None:
        """The readers of foreign checkpoints do."""
        return None

    def integers(self, folder: Path, model: Any, schemes: Schemes) -> Integers:
        """From the words."""
        stored, kinds = ShardReader(folder), set(schemes.values())
        parts = stored_parts(model, schemes, stacks_in(model))

        def weight(name: str) -> QuantizedWeight:
            found = (self._weight(stored.below(p.name), schemes[name], kinds) for p in parts[name])
            return joined_rows(parts[name], found)

        return weight


def _refuse_scales(layer: Layer, model_dtype: torch.dtype, container: str) -> None:
    scales = layer.scheme.torch_dtype
    if scales != model_dtype and (model_dtype is not torch.float32 or scales is torch.float32):
        held = model_dtype
    elif scales is torch.float32:
        held = torch.float16
    else:
        return
    raise FormatError(
        f"{layer.name} has scales in {layer.scheme.scale_dtype}, which clients of {container} round to "
        f"{str(held).removeprefix('torch.')}: leave scale_dtype out, or {WAYS_OUT}"
    )


def _widths_of(layers: list[Layer]) -> dict[str, int]:
    return {layer.name: layer.shape[1] for layer in layers}


def _written(schemes: Schemes, widths: Mapping[str, int], container: str) -> dict[str, Scheme]:
    """The scheme of every layer as it is written: its groups divide its rows, and layers of one group size keep to one.

    Raises:
        FormatError: a group has no written form.
    """
    groups = {
        name: dividing_group(name, scheme.group_size, widths[name], _SMALLEST_GROUP, container)
        for name, scheme in schemes.items()
    }
    if len({scheme.group_size for scheme in schemes.values()}) == 1:
        groups = common_group(groups, widths, _SMALLEST_GROUP)
    return {name: s.model_copy(update={"group_size": groups[name]}) for name, s in schemes.items()}


def prevailing(schemes: Schemes) -> tuple[int, int, bool]:
    """Bits, group size and symmetry of most layers."""
    return Counter(grid_of(scheme) for scheme in schemes.values()).most_common(1)[0][0]


def grid_of(scheme: Scheme) -> tuple[int, int, bool]:
    """Bits, group size and symmetry."""
    return scheme.bits, scheme.group_size, scheme.sym


def head_name(model: Any) -> str | None:
    """Of the output head, by its full name."""
    head = text_model(model).get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)


def name_pattern(name: str, joint: str | None = None) -> str:
    """A regular expression for the full name of a module; its last part may also be `joint`."""
    owner, dot, own = name.rpartition(".")
    last = f"(?:{re.escape(own)}|{joint})" if joint else re.escape(own)
    return f"^{re.escape(owner + dot)}{last}$"


def multiple_of_words(bits: int) -> int:
    """So many codes of `bits` bits fill words."""
    return _WORD // math.gcd(_WORD, bits)
