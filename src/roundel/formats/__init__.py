"""Containers: one file each, writing QuantizedWeights."""

from roundel.formats.compressed_tensors import CompressedTensors
from roundel.formats.container import Container, Layer
from roundel.formats.content import Content, Piece
from roundel.formats.dense import Dense
from roundel.formats.integers import INTEGERS, read_integers
from roundel.formats.opening import open_packed, packed_format
from roundel.formats.roundel_container import FILE, RoundelContainer
from roundel.formats.shards import shard_files
from roundel.formats.spqr import Spqr

_ALL: tuple[Container, ...] = (CompressedTensors(), RoundelContainer(), Spqr(), Dense())
CONTAINERS: dict[str, Container] = {c.name: c for c in _ALL}

# Stems of the files that hold integers.
INTEGER_FILES = (FILE, INTEGERS)

__all__ = [
    "CONTAINERS",
    "INTEGER_FILES",
    "Container",
    "Content",
    "Layer",
    "Piece",
    "open_packed",
    "packed_format",
    "read_integers",
    "shard_files",
]
