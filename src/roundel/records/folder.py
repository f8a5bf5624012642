"""What an output folder holds, read from the files themselves: sizes from the tensors, decisions from the
manifest."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from roundel.errors import ModelError
from roundel.model.checkpoint import read_header
from roundel.records.manifest import MANIFEST, layer_records, read_manifest
from roundel.records.outcome import LayerRecord


@dataclass(frozen=True)
class FolderContents:
    """Attributes:
    manifest: the run's manifest.
    layers: the coverage table.
    stored_bytes: bytes of all tensors of a layer, by its name.
    file_bytes: bytes of the weight files.
    parameters: of the original model; shared ones count once.
    """

    manifest: dict[str, Any]
    layers: list[LayerRecord]
    stored_bytes: dict[str, int]
    file_bytes: int
    parameters: int

    @property
    def bits_per_parameter(self) -> float:
        """Everything counted: embeddings, norms, head, file headers."""
        return 8 * self.file_bytes / self.parameters


def original_bytes(folder: Path) -> int:
    """Bytes of a model in memory, as far as its folder tells: those of the original, where it is an output of ours."""
    if (folder / MANIFEST).is_file():
        return int(read_manifest(folder)["original"].get("bytes", 0))
    return weight_bytes(folder)


def weight_bytes(folder: Path) -> int:
    """Bytes of the weight files of a model's folder, or of its one file; 0 where there are none."""
    files = [folder] if folder.is_file() else _weight_files(folder) or list(folder.glob("*.bin"))
    return sum(file.stat().st_size for file in files)


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.gguf"))


def measure_folder(folder: Path, parameters: int) -> dict[str, Any]:
    """What a written folder weighs, for its manifest: everything counted, embeddings, norms and headers too."""
    size = sum(file.stat().st_size for file in _weight_files(folder))
    return {"file_bytes": size, "bits_per_parameter": 8 * size / parameters}


def read_contents(folder: Path) -> FolderContents:
    """Read an output folder.

    Raises:
        ModelError: no manifest, or weight files that cannot be read.
    """
    manifest = read_manifest(folder)
    layers = layer_records(manifest)
    names = {layer.name for layer in layers}
    stored: dict[str, int] = {}
    files = _weight_files(folder)
    if not files:
        raise ModelError(f"no weights in {folder}: the files that were written with {MANIFEST} are expected")
    for file in files:
        if file.suffix == ".gguf":
            # Tensors have other names there, and each type its size.
            stored |= {
                layer.name: round(layer.bits_per_weight * prod(layer.shape)) // 8
                for layer in layers
                if layer.bits_per_weight is not None
            }
            continue
        for key, entry in read_header(file).items():
            layer = _layer_of(key, names)
            stored[layer] = stored.get(layer, 0) + entry.end - entry.begin
    parameters = manifest["original"]["parameters"]
    return FolderContents(manifest, layers, stored, sum(f.stat().st_size for f in files), parameters)


def _layer_of(key: str, names: set[str]) -> str:
    """The layer whose tensor this is: `P` for `P.weight` as for `P.outliers.values`."""
    owner = key
    while owner and owner not in names:
        owner = owner.rpartition(".")[0]
    return owner or key.rpartition(".")[0]
