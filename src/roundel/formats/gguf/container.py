"""GGUF: one file for llama.cpp, Ollama, LM Studio and whatever else builds on ggml.

What was tuned is what is in the file, bit for bit: grids are the file's own types, rows are moved as they are, and the
written file is decoded again by the `gguf` package's own rules and compared.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch

from roundel.activations.scheme import Activations
from roundel.errors import FormatError, ModelError
from roundel.formats.container import Integers, Layer
from roundel.formats.content import Content
from roundel.formats.decoded import Decoded
from roundel.formats.gguf.base import Base, base_for
from roundel.formats.gguf.checking import check_layout
from roundel.formats.gguf.file import Chunk, FileTensor, GgufFile, write_file
from roundel.formats.gguf.moving import transposed_in
from roundel.formats.gguf.recovered import integers_in
from roundel.formats.gguf.tensors import FileTensors
from roundel.formats.readers import Readers
from roundel.formats.source_files import SourceFiles
from roundel.grid.block_types import BLOCK_TYPES
from roundel.grid.equivalent import as_type
from roundel.grid.scheme import Scheme
from roundel.model.experts import stacks_in

# By bits, for who has a grid that is no type.
_NEAREST = {2: "q2_k", 3: "q3_k", 4: "q4_k", 5: "q5_k", 6: "q6_k", 7: "q8_0", 8: "q8_0"}


class Gguf:
    """Writes GGUF files."""

    name = "gguf"
    whole = True
    others: torch.dtype | None = None

    def check(self, layers: list[Layer], model: Any, activations: Activations, files: SourceFiles) -> None:
        """Types of GGUF files, an architecture that llama.cpp knows, and nothing that its files have no place for."""
        if activations:
            raise FormatError(
                "the inputs of Linears are to be quantized, and a GGUF file does not say how: llama.cpp quantizes them "
                "by itself; leave act_bits and kv_bits out"
            )
        for layer in layers:
            _refuse_beyond_types(layer)
        base = base_for(model, files)
        _check_moves(model, base)
        tensors = FileTensors(base, model)
        for layer in layers:
            tensors.count_weight(layer.name, layer.shape, layer.scheme)
        for name, tensor in _others(model, {layer.name for layer in layers}):
            tensors.count_other(name, tensor)

    def kept(self, model: Any, files: SourceFiles) -> Mapping[str, str]:
        """Of a model that came from a GGUF file: the types of its matrices there."""
        if files.place is None or files.place.gguf is None or files.like is not None:
            return {}
        base = base_for(model, files)
        assert base.kept is not None
        tensors, found = base.kept.tensors, {}
        for name, places in base.layout.items():
            kinds = {tensors[place.name].kind for place in places if place.name in tensors}
            if len(kinds) == 1:
                found[name.removesuffix(".weight")] = kinds.pop().name.lower()
        return found

    def scheme_for(self, scheme: Scheme, in_features: int, dtype: torch.dtype) -> Scheme:
        """A type."""
        return as_type(scheme, in_features)

    def readers(self, layers: list[Layer], model: Any, activations: Activations) -> Readers:
        """Whatever is built on ggml."""
        return Readers(("llama.cpp", "Ollama", "LM Studio"))

    def write(self, folder: Path, content: Content) -> None:
        """Write one file, named after the model and the type of most weights."""
        base = base_for(content.model, content.files)
        tensors = _counted(base, content)
        kind = content.label or _prevailing(tensors.in_order())
        name = "-".join(word for word in (base.name or "model", kind.upper()) if word)
        write_file(
            folder / f"{name}.gguf",
            base.fields_for(kind),
            tensors.in_order(),
            tensors.chunks(content.written_pieces()),
        )

    def verify(self, folder: Path, content: Content, trust_remote_code: bool) -> None:
        """Decode the file as its clients do: the tuned weights, and everything else as it was to be written."""
        path = gguf_file(folder)
        if path is None:
            raise FormatError(f"no GGUF file was written into {folder}; please report this")
        try:
            written = GgufFile(path)
        except ModelError as error:
            raise FormatError(f"the written file cannot be read ({error}); please report this") from error
        base = base_for(content.model, content.files)
        tensors = _counted(base, content)
        if {t.name: t for t in tensors.in_order()} != written.tensors:
            raise FormatError("the written file has other tensors than it should; please report this")
        for chunk in tensors.chunks(content.written_pieces()):
            _compare(written, chunk)
        for piece in content.read_pieces():
            for name, weight in piece.weights.items():
                wanted = weight.dequantize()
                for place in base.layout[f"{name}.weight"]:
                    found = written.tensor(place.name, place.expert)
                    if not torch.equal(found, wanted if place.rows is None else wanted[place.rows]):
                        raise FormatError(
                            f"{place.name} of the written file is not what was tuned; please report this"
                        )

    def decoded(self, folder: Path, trust_remote_code: bool, *, streamed: bool) -> Decoded | None:
        """transformers reads it."""
        return None

    def integers(self, folder: Path, model: Any, schemes: Mapping[str, Scheme]) -> Integers:
        """From the bytes of the file, in the model's order of rows."""
        path = gguf_file(folder)
        if path is None:
            raise ModelError(
                f"no GGUF file in {folder}, or several: the folder as roundel wrote it is expected"
            )
        return integers_in(path, model, schemes)


def gguf_file(folder: Path) -> Path | None:
    """The GGUF file of a folder; None where there is not one alone."""
    found = sorted(folder.glob("*.gguf"))
    return found[0] if len(found) == 1 else None


def _refuse_beyond_types(layer: Layer) -> None:
    scheme = layer.scheme
    if scheme.type is None:
        group = "a row" if scheme.group_size == -1 else f"groups of {scheme.group_size}"
        raise FormatError(
            f"{layer.name} has a grid of {scheme.bits} bits for {group}, and a GGUF file has types of its own: set "
            f"type={_NEAREST[scheme.bits]} for example, or use another --format"
        )
    if layer.permuted:
        raise FormatError(
            f"{layer.name} has codes in another order than the input channels, which GGUF files do not say: set "
            "order=group_aware or static_groups=true"
        )


def _check_moves(model: Any, base: Base) -> None:
    """Where the model came from a GGUF file its tensors, moved, are those of the file; else nothing is written."""
    if base.kept is None or any(p.is_meta for p in model.parameters()):
        return
    state, transposed = model.state_dict(), transposed_in(model)

    def read(name: str) -> torch.Tensor:
        return state[name].mT if name in transposed else state[name]

    names = [name for name in state if name in base.layout]
    check_layout(base.layout, names, read, base.kept.tensor)


def _others(model: Any, quantized: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Everything that a checkpoint stores and that is not quantized, on meta."""
    stacks = stacks_in(model)
    for name, tensor in model.state_dict().items():
        if name.removesuffix(".weight") not in quantized and name not in stacks:
            yield name, tensor.to("meta")
    for name, stack in stacks.items():
        for index, expert in enumerate(stack):
            if f"{name}.{index}" not in quantized:
                yield f"{name}.{index}.weight", expert.weight.to("meta")


def _counted(base: Base, content: Content) -> FileTensors:
    tensors = FileTensors(base, content.model)
    for name, scheme in content.schemes.items():
        tensors.count_weight(name, content.view(name).shape, scheme)
    for piece in content.written_pieces():
        for name, tensor in piece.others.items():
            tensors.count_other(name, tensor)
    return tensors


def _prevailing(tensors: list[FileTensor]) -> str:
    """The type of most weights in blocks, by which files are called."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
            kind = tensor.kind.name.lower()
            counts[kind] += prod(tensor.shape) if kind in BLOCK_TYPES else 0
    return counts.most_common(1)[0][0]


def _compare(written: GgufFile, chunk: Chunk) -> None:
    if not torch.equal(written.raw(chunk.name, chunk.expert), chunk.data.flatten()):
        raise FormatError(
            f"{chunk.name} of the written file is not what was to be written; please report this"
        )
