"""The end of a Linear's way: its weight is written back, and what is to be reported of it is noted."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from roundel.engine.job import Job
from roundel.engine.observations import Observations
from roundel.engine.target import Original
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.records.layer_stats import LayerDetails, input_details, outlier_details, weight_details
from roundel.records.outcome import LayerRecord

# Of a block with many experts no more than so many notes are said; the coverage table has them all.
_MOST_SAID = 2

Chosen = Iterable[tuple[Original, QuantizedWeight]]
"""Linears with the integers that were chosen for them."""


@dataclass(frozen=True)
class QuantizedLinears:
    """Linears that are done.

    Attributes:
        weights: the integers by full name, on the CPU.
        records: what is to be reported, by full name.
    """

    weights: dict[str, QuantizedWeight]
    records: dict[str, LayerRecord]


class Finisher:
    """Writes weights back.

    Args:
        job: whose Linears these are.

    Attributes:
        planned: the coverage table's records, by full name.
    """

    def __init__(self, job: Job) -> None:
        self.planned = {layer.name: layer for layer in job.coverage.layers}
        inputs = job.recipe.activations.inputs
        self._inputs = inputs.summary if inputs else ""
        self._progress = job.progress

    def finish(self, chosen: Chosen, seen: Observations) -> QuantizedLinears:
        """Write each Linear's weight, one after the other: what it was goes before the next one comes.

        Args:
            chosen: the Linears, which may be made as they are asked for.
            seen: what was observed of them; it may grow while they are made.
        """
        done = QuantizedLinears({}, {})
        for target, quantized in chosen:
            name = target.view.name
            dequantized = quantized.dequantize()
            target.view.write(dequantized)
            done.records[name] = self._record(target, quantized, dequantized, seen)
            done.weights[name] = quantized.to(torch.device("cpu"))
        self._say_notes(done.records.values())
        return done

    def _record(
        self, target: Original, quantized: QuantizedWeight, dequantized: torch.Tensor, seen: Observations
    ) -> LayerRecord:
        name = target.view.name
        power = target.weight.square().mean().clamp_min(1e-30)
        sizes, smoothing = seen.sizes.get(name), seen.smoothing.get(name)
        return replace(
            self.planned[name].quantized_as(quantized),
            note=target.note,
            tokens=seen.tokens.get(name),
            inputs=self._inputs,
            smoothing=smoothing.summary if smoothing else "",
            smoothed=smoothing is not None and smoothing.done,
            # Nobody needs the dequantized weight any more.
            error=float(dequantized.sub_(target.weight).square_().mean() / power),
            details=LayerDetails(
                weight_details(target.weight),
                None if sizes is None else input_details(sizes),
                outlier_details(quantized, seen.heads.get(name)),
            ),
        )

    def _say_notes(self, records: Iterable[LayerRecord]) -> None:
        """What was done otherwise than asked."""
        notes = [f"{record.name}: {record.note}" for record in records if record.note]
        for note in notes[:_MOST_SAID]:
            self._progress.say(note)
        if len(notes) > _MOST_SAID:
            more = len(notes) - _MOST_SAID
            self._progress.say(f"{more} more Linears of this block have such a note: see roundel inspect")
