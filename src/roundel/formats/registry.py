"""The containers by name; which of them a folder is in, and how it is opened where transformers alone would not do."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roundel.formats.auto_round import AutoRound
from roundel.formats.awq import Awq
from roundel.formats.compressed_tensors import CompressedTensors
from roundel.formats.container import Container
from roundel.formats.decoded import open_decoded
from roundel.formats.dense import Dense
from roundel.formats.gguf.container import Gguf
from roundel.formats.gptq import Gptq
from roundel.formats.integers import INTEGERS
from roundel.formats.roundel_container import FILE, RoundelContainer
from roundel.formats.shards import shard_files
from roundel.formats.spqr import Spqr
from roundel.model.extra_tensors import ExtraTensors, extra_among
from roundel.model.storage import OnDisk

_ALL: tuple[Container, ...] = (
    CompressedTensors(),
    RoundelContainer(),
    Gptq("gptq"),
    Gptq("gptq_v2"),
    Awq(),
    AutoRound(),
    Spqr(),
    Gguf(),
    Dense(),
)
CONTAINERS: dict[str, Container] = {c.name: c for c in _ALL}

# Stems of the files that hold integers.
INTEGER_FILES = (FILE, INTEGERS)

_UNREAD = "quantization_config"


def packed_format(folder: Path) -> str | None:
    """`roundel`, or the method that config.json names; None for an ordinary model, or where there is no telling."""
    if shard_files(folder, FILE):
        return "roundel"
    method = packed_about(folder).get("quant_method")
    return None if method is None else str(method)


def packed_about(folder: Path) -> dict[str, Any]:
    """The quantization config of a folder; empty where there is none, or no telling."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))[_UNREAD]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Packed:
    """A model of a folder of integers.

    Attributes:
        model: its modules.
        storage: where its weights are; None: in memory.
        extra: tensors of the folder for which the class has no place.
    """

    model: Any
    storage: OnDisk | None
    extra: ExtraTensors


def open_packed(
    folder: Path, trust_remote_code: bool, *, streamed: bool, weights_only: bool = False
) -> Packed | None:
    """The model of a folder of integers; None where others open it better.

    Args:
        folder: of any model.
        trust_remote_code: run modeling code that comes with it.
        streamed: leave the weights on disk.
        weights_only: of compressed-tensors, model/stored reads more.

    Raises:
        ModelError: it cannot be read.
    """
    container = CONTAINERS.get(packed_format(folder) or "")
    if container is None:
        return None
    decoded = container.decoded(folder, trust_remote_code, streamed=streamed and not weights_only)
    if decoded is None:
        return None
    model, storage = open_decoded(folder, decoded, trust_remote_code, streamed=streamed)
    # Experts are stored one by one, and are in the model all the same.
    apart = {name for name in decoded if name.removesuffix(".weight").rpartition(".")[0] in decoded.stacks}
    return Packed(model, storage, extra_among(model, decoded, set(decoded) - apart, folder))
