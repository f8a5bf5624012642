"""A folder that Roundel wrote, opened to be written once more: its integers, and everything else, a piece at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from roundel.errors import ModelError, RoundelError
from roundel.formats import CONTAINERS, Container, Piece, shard_files
from roundel.formats.roundel_container import FILE
from roundel.formatting import kind_and_line
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.model.blocks import BlockStack, find_blocks
from roundel.model.experts import divide, rejoin, stacks_in, unquantized
from roundel.model.place import locate
from roundel.model.source import SourceModel
from roundel.model.storage import tie
from roundel.model.stored_types import StoredTypes
from roundel.records.manifest import MANIFEST, layer_records, read_manifest
from roundel.records.outcome import LayerRecord
from roundel.system.belongings import listed_files, own_files
from roundel.workflows.open import open_model
from roundel.workflows.recorded import recorded_schemes
from roundel.workflows.write import outside_blocks

_WEIGHTS = (".safetensors", ".gguf", "roundel_activations.json")


@dataclass(frozen=True)
class WrittenFolder:
    """An output folder.

    Attributes:
        folder: which.
        manifest: of it.
        format: its format.
        container: that wrote it.
        source: the model: names and shapes, and where its unquantized tensors are.
        stack: its decoder blocks; stacks of experts that are quantized are divided.
        schemes: the grid of each quantized Linear, as it was tuned.
        records: its coverage table.
        integers: gives those of a Linear.
    """

    folder: Path
    manifest: dict[str, Any]
    format: str
    container: Container
    source: SourceModel
    stack: BlockStack
    schemes: dict[str, Scheme]
    records: list[LayerRecord]
    integers: Callable[[str], QuantizedWeight]

    @classmethod
    def open(
        cls, folder: Path, stream_with: Path, *, trust_remote_code: bool, blocks: str | None
    ) -> "WrittenFolder":
        """Open one.

        Args:
            folder: the output of a run, or the file of weights in it.
            stream_with: folder for tensors that are not stored as the model has them.
            trust_remote_code: run modeling code that comes with it.
            blocks: pattern of the decoder blocks' names; None: they are found.

        Raises:
            ModelError: there is none, or it is not as Roundel wrote it.
        """
        place = locate(folder)
        folder, manifest = place.folder, read_manifest(place.folder)
        format = str(manifest["recipe"].get("format"))
        if format not in CONTAINERS:
            raise ModelError(
                f"{folder} is in the format {format}, which this roundel does not know: a newer one is expected"
            )
        _check_whole(folder)
        source = open_model(
            place, None, trust_remote_code, False, allow_own=True, stream_with=stream_with, blocks=blocks
        )
        model, container = source.model, CONTAINERS[format]
        tie(model)  # which streamed ones are when their weights come
        divide(model)
        schemes = recorded_schemes(folder, manifest, model)
        rejoin(model, keep={name.rpartition(".")[0] for name in schemes})
        return cls(
            folder=folder,
            manifest=manifest,
            format=format,
            container=container,
            source=source,
            stack=find_blocks(model, blocks),
            schemes=schemes,
            records=layer_records(manifest),
            integers=container.integers(folder, model, schemes),
        )

    @property
    def gguf(self) -> Path | None:
        """The file that holds all of it, where it is one."""
        return None if self.source.place is None else self.source.place.gguf

    @property
    def types(self) -> StoredTypes:
        """Those in which its tensors are stored."""
        model = self.source.model
        if self.gguf is not None:
            return StoredTypes(model, None)
        files = shard_files(self.folder, FILE)
        return StoredTypes(model, None if files else self.folder, files)

    def weight(self, name: str) -> QuantizedWeight:
        """The integers of a Linear.

        Raises:
            ModelError: they cannot be read.
        """
        try:
            return self.integers(name)
        except (RoundelError, KeyError, ValueError, RuntimeError, OSError) as error:
            raise ModelError(
                f"the integers of {name} in {self.folder} cannot be read ({kind_and_line(error)}): the folder as "
                "roundel quantize wrote it is expected"
            ) from error

    def others(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All tensors that are not quantized, by their names in the model."""
        for piece in self.pieces(lambda name: None):
            yield from piece.others.items()

    def pieces(self, weight: Callable[[str], QuantizedWeight | None]) -> Iterator[Piece]:
        """All of it in the model's types: block by block, and what is around them.

        Args:
            weight: the integers of a Linear, as they are to be written; None: they are not asked for.
        """
        model, storage, stack = self.source.model, self.source.storage, self.stack

        def weights(index: int | None) -> dict[str, QuantizedWeight]:
            names = [name for name in self.schemes if stack.index_of(name) == index]
            found = {name: weight(name) for name in names}
            return {name: w for name, w in found.items() if w is not None}

        for index, block in enumerate(stack.blocks):
            prefix, stacks = stack.block_name(index), stacks_in(block, stack.block_name(index))
            state = {}
            for key in block.state_dict():
                name = f"{prefix}.{key}"
                experts = range(len(stacks[name])) if name in stacks else ()
                done = [f"{name}.{number}" in self.schemes for number in experts]
                if name.removesuffix(".weight") not in self.schemes and not (done and all(done)):
                    state[name] = storage.tensor(model, name).detach()
            others = unquantized(state, stacks, self.schemes)
            yield Piece(weights(index), {name: t.cpu().contiguous() for name, t in others.items()})
        around = weights(None)
        yield from (Piece({name: found}) for name, found in around.items())
        yield outside_blocks(model, stack, storage, self._outside)

    @property
    def _outside(self) -> set[str]:
        """What begins the names of tensors around the blocks that are quantized, a head that is tied among them."""
        named = [name for name in self.schemes if self.stack.index_of(name) is None]
        parameters = dict(self.source.model.named_parameters(remove_duplicate=False))
        done = {f"{name}." for name in named}
        for name in named:
            own = parameters.get(f"{name}.weight")
            done |= {other for other, parameter in parameters.items() if parameter is own}
        return done


def _check_whole(folder: Path) -> None:
    """The weights are those that Roundel wrote."""
    if not listed_files(folder):
        raise ModelError(
            f"{folder} holds a {MANIFEST} that was changed since, or that an older roundel wrote, so nothing says "
            "whether its weights are whole: the folder as roundel quantize wrote it is expected"
        )
    for name, ours in own_files(folder).items():
        if not ours and name.endswith(_WEIGHTS):
            how = "was changed since" if (folder / name).exists() else "is missing"
            raise ModelError(
                f"{name} of {folder} {how}: the folder as roundel quantize wrote it is expected; quantize the original "
                "again"
            )
