"""The manifest of a folder that was made of another one, in another format, with the same weights."""

from hashlib import file_digest
from pathlib import Path
from typing import Any

from roundel.records.manifest import MANIFEST, versions, without_details
from roundel.records.outcome import LayerRecord, Outcome


def exported_manifest(
    manifest: dict[str, Any], folder: Path, layers: list[LayerRecord], format: str, opens_in: list[str]
) -> dict[str, Any]:
    """The manifest of the folder before with what is otherwise now; its files are not listed yet.

    Args:
        manifest: of the folder before.
        folder: which that is.
        layers: the coverage table, with the grids that layers have now.
        format: of the new folder.
        opens_in: clients that open it.
    """
    outcome = Outcome([], layers)
    with (folder / MANIFEST).open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    before = {
        "folder": folder.resolve().name,
        "format": manifest["recipe"]["format"],
        "manifest_sha256": digest,
        "roundel": versions()["roundel"],
    }
    if "exported_from" in manifest:
        before["exported_from"] = manifest["exported_from"]
    kept = {key: value for key, value in manifest.items() if key != "files"}
    return {
        **kept,
        "recipe": {**manifest["recipe"], "format": format},
        "bits_per_weight": outcome.bits_per_weight(),
        "paper_bits": outcome.paper_bits(),
        "outlier_share": outcome.outlier_share(),
        "opens_in": opens_in,
        "exported_from": before,
        "layers": [without_details(layer) for layer in layers],
    }


def exports(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The folders that a folder was made of, one of the other, the first that was tuned first; none of one that was."""
    found: list[dict[str, Any]] = []
    before = manifest.get("exported_from")
    while before:
        found.insert(0, before)
        before = before.get("exported_from")
    return found
