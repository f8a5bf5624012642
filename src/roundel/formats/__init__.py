"""Containers: one file each, writing QuantizedWeights."""

from roundel.formats.container import Container, Layer
from roundel.formats.content import Content, Piece
from roundel.formats.integers import read_integers
from roundel.formats.registry import CONTAINERS, INTEGER_FILES, open_packed, packed_format
from roundel.formats.shards import shard_files

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
