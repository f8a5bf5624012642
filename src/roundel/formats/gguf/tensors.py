"""Which tensors a file gets, each in which type, and their bytes.

What is quantized has the type of its grid. Of a model that came from a GGUF file, everything else keeps the bytes that
it has there, unless the work has changed it (smoothing does). What comes from elsewhere keeps the type of the
checkpoint; vectors, and what llama.cpp computes in float32 only, are float32.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from gguf import GGMLQuantizationType as Kind

from roundel.errors import FormatError
from roundel.formats.content import Piece
from roundel.formats.gguf.base import Base
from roundel.formats.gguf.file import Chunk, FileTensor
from roundel.formats.gguf.layout import Place
from roundel.formats.gguf.moving import is_stack, moved, transposed_in
from roundel.grid.block_bytes import to_bytes
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme

_KINDS = {torch.float32: Kind.F32, torch.float16: Kind.F16, torch.bfloat16: Kind.BF16}
_DTYPES = {kind: dtype for dtype, kind in _KINDS.items()}
# Matrices that llama.cpp wants in float32.
_FLOAT = ("ffn_gate_inp.weight", "position_embd.weight", "token_types.weight", "ssm_conv1d.weight")


class FileTensors:
    """The tensors of a file, as pieces of a model give them.

    Args:
        base: everything but the weights.
        model: names and shapes; tensors may be absent.
    """

    def __init__(self, base: Base, model: Any) -> None:
        self.base = base
        self._transposed = transposed_in(model)
        self._tensors: dict[str, FileTensor] = {}
        self._experts: dict[str, int] = {}
        self._kept: set[str] = set() if base.kept is None else set(base.kept.tensors)

    def count_weight(self, name: str, shape: tuple[int, int], scheme: Scheme) -> None:
        """A quantized Linear will come.

        Raises:
            FormatError: it shares a tensor with others of another type.
        """
        assert scheme.type is not None
        for place in self.base.layout[f"{name}.weight"]:
            rows = shape[0] if place.rows is None else len(place.rows)
            self._kept.discard(place.name)
            self._count(name, place, (rows, shape[1]), Kind[scheme.type.upper()])

    def count_other(self, name: str, tensor: torch.Tensor) -> None:
        """Another tensor will come, this one or one of its shape and type on meta."""
        for place, part in self._parts(name, tensor):
            kind = _KINDS[part.dtype]
            kept = self.base.kept
            if part.ndim < 2 or place.name.endswith(_FLOAT):
                kind = Kind.F32
            elif kept is not None and place.name in kept.tensors:
                # What was dequantized to float32 was no more than 16 bits before.
                kind = Kind.F32 if kept.tensors[place.name].kind is Kind.F32 else Kind.F16
            if kept is not None and place.name in self._kept and not part.is_meta:
                found = kept.tensor(place.name, place.expert)
                if not torch.equal(part.float(), found.view(part.shape)):
                    self._kept.discard(place.name)
            self._count(name, place, tuple(part.shape), kind)

    def _count(self, name: str, place: Place, shape: tuple[int, ...], kind: Kind) -> None:
        found = self._tensors.setdefault(place.name, FileTensor(place.name, shape, kind))
        if found.kind is not kind:
            raise FormatError(
                f"{name} is to be {kind.name.lower()}, and shares the tensor {place.name} with others that are to be "
                f"{found.kind.name.lower()}: one type for all experts of a layer is expected"
            )
        if place.expert is not None:
            self._experts[place.name] = max(self._experts.get(place.name, 0), place.expert + 1)

    def in_order(self) -> list[FileTensor]:
        """All that were counted, and the base's tables, as the file has them."""
        kept, found = self.base.kept, {}
        for name, tensor in self._tensors.items():
            experts = (self._experts[name],) if name in self._experts else ()
            found[name] = FileTensor(name, (*experts, *tensor.shape), tensor.kind)
            if kept is not None and name in self._kept:
                found[name] = kept.tensors[name]
        found |= {table.tensor.name: table.tensor for table in self.base.tables}
        first = [name for name in self.base.order if name in found]
        return [found[name] for name in (*first, *(n for n in found if n not in set(first)))]

    def chunks(self, pieces: Iterable[Piece]) -> Iterator[Chunk]:
        """The bytes of everything."""
        kept = self.base.kept
        yield from (Chunk(table.tensor.name, table.data) for table in self.base.tables)
        if kept is not None:
            yield from (Chunk(name, kept.raw(name)) for name in self._tensors if name in self._kept)
        for piece in pieces:
            for name, weight in piece.weights.items():
                yield from self._of_weight(name, weight)
            for name, tensor in piece.others.items():
                for place, part in self._parts(name, tensor):
                    if place.name not in self._kept:
                        kind = self._tensors[place.name].kind
                        yield Chunk(place.name, _bytes(part.to(_DTYPES[kind])), place.expert)

    def _of_weight(self, name: str, weight: QuantizedWeight) -> Iterator[Chunk]:
        rows = to_bytes(weight)
        for place in self.base.layout[f"{name}.weight"]:
            yield Chunk(place.name, rows if place.rows is None else rows[place.rows], place.expert)

    def _parts(self, name: str, tensor: torch.Tensor) -> Iterator[tuple[Place, torch.Tensor]]:
        """What goes to each place of a tensor that is not quantized."""
        rows = tensor.mT if name in self._transposed else tensor
        for place in self.base.layout[name]:
            yield place, moved(rows, place, stacked=is_stack(name, self.base.layout[name]))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
