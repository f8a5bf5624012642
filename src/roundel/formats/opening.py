"""Which of the output formats a folder has, and how it is opened where transformers alone would not do."""

import json
from pathlib import Path
from typing import Any

from roundel.formats import compressed_reader, roundel_container, spqr
from roundel.formats.decoded import Decoded, open_decoded
from roundel.formats.roundel_container import FILE
from roundel.formats.shards import shard_files
from roundel.model.storage import OnDisk

_UNREAD = "quantization_config"


def packed_format(folder: Path) -> str | None:
    """`roundel`, or the method that config.json names; None for an ordinary model, or where there is no telling."""
    if shard_files(folder, FILE):
        return "roundel"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return str(config[_UNREAD]["quant_method"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def open_packed(folder: Path, trust_remote_code: bool, *, streamed: bool) -> tuple[Any, OnDisk | None] | None:
    """The model of a folder of integers; None where transformers opens it better.

    transformers reads compressed-tensors, whole; it does not know Roundel's own container, and wants a CUDA device for
    SpQR's.

    Args:
        folder: of any model.
        trust_remote_code: run modeling code that comes with it.
        streamed: leave the weights on disk.

    Raises:
        ModelError: it cannot be read.
    """
    kind = packed_format(folder)
    decoded: Decoded
    if kind == "roundel":
        decoded = roundel_container.read_decoded(folder)
    elif kind == "spqr":
        decoded = spqr.read_decoded(folder)
    elif kind == "compressed-tensors" and streamed:
        decoded = compressed_reader.read_decoded(folder, trust_remote_code)
    else:
        return None
    return open_decoded(folder, decoded, trust_remote_code, streamed=streamed)
