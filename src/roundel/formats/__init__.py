"""Containers: one file each, writing QuantizedWeights."""

from roundel.formats.compressed_tensors import CompressedTensors
from roundel.formats.container import Container, Layer
from roundel.formats.dense import Dense

CONTAINERS: dict[str, Container] = {c.name: c for c in (CompressedTensors(), Dense())}

__all__ = ["CONTAINERS", "Container", "Layer"]
