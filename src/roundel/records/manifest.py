"""The manifest: `roundel.json` in every output folder says exactly what was done.

Everything that decides the weights is in it (recipe in full, fingerprints, seed, versions), and everything
that was measured on the way (losses, errors, times, memory).
"""

import json
import platform
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from roundel.errors import ModelError
from roundel.records.outcome import LayerRecord, Outcome
from roundel.system.belongings import MANIFEST, list_files
from roundel.system.memory import peak_memory
from roundel.system.seal import write_sealed_json

__all__ = [
    "MANIFEST",
    "build_manifest",
    "layer_records",
    "read_manifest",
    "versions",
    "without_details",
    "write_manifest",
]


class _Original(BaseModel):
    parameters: int = Field(gt=0)


class _RecipeName(BaseModel):
    name: str


class _Wanted(BaseModel):
    """What readers of a manifest rely on; it holds more."""

    source: str
    recipe: _RecipeName
    original: _Original
    bits_per_weight: float
    paper_bits: float
    outlier_share: float
    layers: list[LayerRecord]


_PACKAGES = ("roundel", "torch", "transformers", "safetensors", "compressed-tensors", "numpy")


def build_manifest(
    outcome: Outcome,
    *,
    recipe: dict[str, Any],
    source: str,
    original: dict[str, Any],
    calibration: dict[str, Any] | None,
    device: str,
    amp: str,
    threads: int,
    ranks: int,
    seconds: float,
) -> dict[str, Any]:
    """Everything about a run as plain data.

    Args:
        outcome: the engine's records.
        recipe: all keys of the recipe, defaults included.
        source: what the user named as the model.
        original: fingerprint, bytes, bits per weight and parameters of the unquantized model.
        calibration: source, shape and fingerprint of the tokens; None if none were used.
        device: where blocks computed.
        amp: the autocast type that was used.
        threads: of torch on the CPU, in each process.
        ranks: processes that shared the work.
        seconds: wall time of the quantization.
    """
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "source": source,
        "original": original,
        "calibration": calibration,
        "recipe": recipe,
        "device": device,
        "amp": amp,
        "threads": threads,
        "ranks": ranks,
        "bits_per_weight": outcome.bits_per_weight(),
        "paper_bits": outcome.paper_bits(),
        "outlier_share": outcome.outlier_share(),
        "trained_share": outcome.trained_share(),
        "seconds": seconds,
        "peak_memory_bytes": peak_memory(),
        "blocks": [asdict(block) for block in outcome.blocks],
        "layers": [without_details(layer) for layer in outcome.layers],
    }


def without_details(layer: LayerRecord) -> dict[str, Any]:
    """A layer as the manifest has it."""
    return {key: value for key, value in asdict(replace(layer, details=None)).items() if key != "details"}


def versions() -> dict[str, str]:
    """Of everything that decides the numbers."""
    return {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write it into an output folder that is whole but for the report; its files are listed, so that they are known."""
    manifest["files"] = list_files(folder)
    write_sealed_json(folder / MANIFEST, "manifest", manifest, indent=1)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read it back.

    Raises:
        ModelError: no manifest in the folder, or not readable.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ModelError(f"no {MANIFEST} in {folder}: a folder written by roundel quantize is expected")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError(f"it holds {type(manifest).__name__}")
        manifest.pop("seal", None)
        _Wanted.model_validate(manifest)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise ModelError(
            f"{path} cannot be read: {place}: {problem['msg'].lower()}; a file as roundel quantize writes it is "
            "expected"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}; a JSON file is expected") from error
    complete_layers(manifest)
    return manifest


def complete_layers(manifest: dict[str, Any]) -> None:
    """Give a manifest of an earlier version what layers say since: until then it stood in their words alone."""
    for layer in manifest["layers"]:
        layer.setdefault("tied", "tied to the embedding" in layer.get("reason", ""))
        layer.setdefault("smoothed", layer.get("smoothing", "").startswith("smoothed into"))


def layer_records(manifest: dict[str, Any]) -> list[LayerRecord]:
    """The coverage table of a manifest.

    Raises:
        ModelError: it says more than this version knows.
    """
    known = {field.name for field in fields(LayerRecord)}
    for layer in manifest["layers"]:
        for key in layer.keys() - known:
            raise ModelError(
                f"{MANIFEST} says {key} of {layer['name']}, which this roundel does not know: the version that wrote "
                "it is expected, or a newer one"
            )
    return [LayerRecord.read(layer) for layer in manifest["layers"]]
