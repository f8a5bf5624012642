"""The end of a Linear's way: its weight is written back, and what is to be reported of it is noted."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from roundel.engine.observations import Observations
from roundel.engine.target import Target
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.records.layer_stats import LayerDetails, input_details, outlier_details, weight_details
from roundel.records.outcome import LayerRecord

Chosen = Iterable[tuple[Target, QuantizedWeight]]
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


def finish(
    chosen: Chosen, records: dict[str, LayerRecord], seen: Observations, inputs: str
) -> QuantizedLinears:
    """Write each Linear's weight, one after the other: what it was goes before the next one comes.

    Args:
        chosen: the Linears, which may be made as they are asked for.
        records: the coverage table's, by full name.
        seen: what was observed of them; it may grow while they are made.
        inputs: the grid of their inputs, in words.
    """
    done = QuantizedLinears({}, {})
    for target, quantized in chosen:
        name = target.view.name
        dequantized = quantized.dequantize()
        target.view.write(dequantized)
        done.records[name] = _record(records[name], target, quantized, dequantized, seen, inputs)
        done.weights[name] = quantized.to(torch.device("cpu"))
    return done


def _record(
    record: LayerRecord,
    target: Target,
    quantized: QuantizedWeight,
    dequantized: torch.Tensor,
    seen: Observations,
    inputs: str,
) -> LayerRecord:
    name = record.name
    power = target.weight.square().mean().clamp_min(1e-30)
    sizes, smoothing = seen.sizes.get(name), seen.smoothing.get(name)
    return replace(
        record.quantized_as(quantized),
        note=target.note,
        tokens=seen.tokens.get(name),
        inputs=inputs,
        smoothing=smoothing.summary if smoothing else "",
        smoothed=smoothing is not None and smoothing.done,
        error=float((dequantized - target.weight).square().mean() / power),
        details=LayerDetails(
            weight_details(target.weight),
            None if sizes is None else input_details(sizes),
            outlier_details(quantized, seen.heads.get(name)),
        ),
    )
