"""Finished parts of a model, a block or the head: kept in memory, written to the journal, taken over from it later."""

from dataclasses import asdict, dataclass

import torch

from roundel.activations.scheme import StaticGrid
from roundel.engine.finish import QuantizedLinears
from roundel.engine.job import Job
from roundel.formats.content import Piece
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.model.experts import stacks_in, unquantized
from roundel.model.linears import LinearView
from roundel.records.outcome import BlockRecord, LayerRecord, Outcome


@dataclass(frozen=True)
class Part:
    """A finished part.

    Attributes:
        number: of the block; the head comes after the last.
        name: in the model.
        module: the block or the head, with dequantized weights.
        linears: integers and records.
        record: of a block; None: the head.
        stream_shape: `[N, S, H]` of what enters the next part; None where no data are read.
    """

    number: int
    name: str
    module: torch.nn.Module
    linears: QuantizedLinears
    record: BlockRecord | None
    stream_shape: tuple[int, int, int] | None


class FinishedParts:
    """All parts that a walk has finished, or has taken over from an earlier process.

    Args:
        job: the walk's.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._records = {layer.name: layer for layer in job.coverage.layers}
        self._blocks: list[BlockRecord] = []
        self._weights: dict[str, QuantizedWeight] = {}

    @property
    def outcome(self) -> Outcome:
        """What there is to report; integers where they are kept in memory."""
        return Outcome(self._blocks, list(self._records.values()), self._weights)

    def add(self, part: Part) -> None:
        """Keep what a part of this process has become."""
        self._records |= part.linears.records
        if part.record is not None:
            self._blocks.append(part.record)
        if self.job.keeps_weights:
            self._weights |= part.linears.weights

    def write(self, part: Part) -> None:
        """Commit a part to the journal."""
        job, weights = self.job, part.linears.weights
        assert job.journal is not None
        state = {f"{part.name}.{key}": tensor.detach() for key, tensor in part.module.state_dict().items()}
        others = {
            key: tensor.cpu().contiguous()
            for key, tensor in unquantized(state, stacks_in(part.module, part.name), weights).items()
        }
        records = {**self._records, **part.linears.records}.values()
        static = {} if job.activations is None else job.activations.static
        note = {
            "block": None if part.record is None else asdict(part.record),
            "layers": [asdict(r) for r in records if r.name in weights or r.block == part.number],
            "static": {name: asdict(static[name]) for name in weights if name in static},
            "stream_shape": part.stream_shape,
        }
        job.journal.commit(part.number, job.model, Piece(weights, others), note)
        job.journal.discard_snapshots(part.number)

    def take_over(self, number: int) -> None:
        """Add a part that is in the journal; where results stay in memory, the model gets its weights."""
        job = self.job
        assert job.journal is not None
        note = job.journal.note(number)
        if note["block"] is not None:
            self._blocks.append(BlockRecord(**note["block"]))
        self._records |= {plain["name"]: LayerRecord.read(plain) for plain in note["layers"]}
        if job.activations is not None:
            job.activations.static |= {name: StaticGrid(**grid) for name, grid in note["static"].items()}
        if job.keeps_weights:
            self._restore(job.journal.piece(number))

    def _restore(self, piece: Piece) -> None:
        self._weights |= piece.weights
        model = self.job.model
        for name, weight in piece.weights.items():
            LinearView(name, model.get_submodule(name)).write(weight.dequantize())
        own = model.state_dict()
        for name, tensor in piece.others.items():
            if name in own:
                own[name].copy_(tensor)
            else:  # an expert that was left out, of a stack with others that were not
                expert = name.removesuffix(".weight")
                LinearView(expert, model.get_submodule(expert)).write(tensor)
