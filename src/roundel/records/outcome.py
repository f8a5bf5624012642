"""What a run has to tell: plain records, written by the engine, read by manifest, tables and pages."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import prod
from typing import Any

from roundel.grid.quantized_weight import QuantizedWeight
from roundel.records.layer_stats import LayerDetails

# The kind of a tensor for which the model's class has no place.
EXTRA = "extra tensor"


@dataclass(frozen=True)
class LayerRecord:
    """One layer of the coverage table: what became of it and why.

    Attributes:
        name: full name in the model.
        kind: the module's class.
        shape: of the weight; `[out, in]` for a Linear.
        block: index of its decoder block, None outside the stack.
        reason: why it stays as it is; empty for a quantized layer.
        tied: it has no weight of its own, but the embedding's.
        note: what happened to a quantized layer that was not asked for.
        tokens: of the calibration data that it saw; None where none were read.
        inputs: the grid of its inputs; empty where they are not quantized.
        smoothing: whether SmoothQuant reached it, and where its scale went, in words.
        smoothed: SmoothQuant changed its weight.
        type: of GGUF files, where its grid is one.
        bits_per_weight: everything stored of the weight, over the number of weights.
        paper_bits: the same as papers count it, without row counts and order.
        outliers: share of the weights that are kept beside the grid.
        error: relative squared rounding error of the weights, None where nothing was quantized.
        details: of a quantized layer, for the report; the manifest does not have them.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    block: int | None
    reason: str = ""
    tied: bool = False
    note: str = ""
    tokens: int | None = None
    inputs: str = ""
    smoothing: str = ""
    smoothed: bool = False
    type: str | None = None
    bits: int | None = None
    group_size: int | None = None
    sym: bool | None = None
    bits_per_weight: float | None = None
    paper_bits: float | None = None
    outliers: float | None = None
    error: float | None = None
    details: LayerDetails | None = None

    def quantized_as(self, weight: QuantizedWeight) -> "LayerRecord":
        """The same with the grid of a weight, and what it takes to store."""
        scheme = weight.scheme
        return replace(
            self,
            type=scheme.type,
            bits=scheme.bits,
            group_size=scheme.group_size,
            sym=scheme.sym,
            bits_per_weight=weight.bits_per_weight(),
            paper_bits=weight.paper_bits(),
            outliers=weight.outlier_share,
        )

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> "LayerRecord":
        """Back from what `asdict` made of it, with or without a way through JSON."""
        details = plain.get("details")
        return cls(
            **{
                **plain,
                "shape": tuple(plain["shape"]),
                "details": None if details is None else LayerDetails.read(details),
            }
        )


def summary(layers: list[LayerRecord]) -> str:
    """A coverage table in a line: how much is quantized, what is left out for which reason, what was noted."""
    quantized = [layer for layer in layers if layer.bits is not None]
    share = sum(prod(layer.shape) for layer in quantized) / sum(prod(layer.shape) for layer in layers)
    words = f"{len(quantized)} Linears quantized, {share:.1%} of all matrices' weights"
    reasons = Counter(layer.reason for layer in layers if layer.bits is None)
    if reasons:
        words += "; left out: " + ", ".join(f"{count} ({reason})" for reason, count in reasons.items())
    noted = sum(bool(layer.note) for layer in quantized)
    return words + (f"; {noted} with a note" if noted else "")


@dataclass
class BlockRecord:
    """One decoder block: losses (relative to the mean squared output) before and after, time.

    Attributes:
        loss_start, loss_end: relative error of the block's output before and after tuning; without tuning only the
            end, with `block_loss`.
        kept: `start`, or the iteration whose parameters were kept.
        curve: the training loss of every step.
        trained: how many numbers were learned.
        note: what had to be done otherwise than asked.
        peak_bytes: of main memory that the process held at most meanwhile; so far, where the system counts no part.
    """

    name: str
    loss_start: float | None = None
    loss_end: float | None = None
    kept: str = ""
    seconds: float = 0.0
    curve: list[float] = field(default_factory=list)
    trained: int = 0
    note: str = ""
    peak_bytes: int | None = None


@dataclass
class Outcome:
    """The result of a walk over a model: what is to be reported, and the integers where they are kept in memory."""

    blocks: list[BlockRecord]
    layers: list[LayerRecord]
    weights: dict[str, QuantizedWeight] = field(default_factory=dict)

    def bits_per_weight(self) -> float:
        """Mean over all quantized weights (where all were quantized in their file before, over those); scales, zero
        points and outliers included."""
        return self._mean("bits_per_weight")

    def paper_bits(self) -> float:
        """The same as SpQR's paper counts it."""
        return self._mean("paper_bits")

    def outlier_share(self) -> float:
        """Share of all quantized weights that are kept beside the grid."""
        return self._mean("outliers")

    def trained_share(self) -> float:
        """Numbers learned, over the number of quantized weights."""
        return sum(block.trained for block in self.blocks) / self._count()

    def details(self) -> dict[str, dict[str, Any]]:
        """Of all quantized layers by name, as plain data."""
        return {
            layer.name: asdict(layer.details)
            for layer in self.layers
            if layer.bits is not None and layer.details is not None
        }

    def _mean(self, figure: str) -> float:
        return sum(getattr(layer, figure) * prod(layer.shape) for layer in self._stored) / self._count()

    def _count(self) -> int:
        return sum(prod(layer.shape) for layer in self._stored)

    @property
    def _stored(self) -> list[LayerRecord]:
        kept = [layer for layer in self.layers if layer.bits_per_weight is not None]
        return [layer for layer in kept if layer.bits is not None] or kept
