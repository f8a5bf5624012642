"""What is said of a folder that was exported from another one: how it was tuned, measured and made."""

from shlex import quote
from typing import Any

from roundel.formatting import printable
from roundel.records.exported import exports


def measured_before(report: dict[str, Any]) -> str:
    """In which format the figures of quality were measured; empty where none were, or in that of the folder."""
    quality, before = report.get("quality") or {}, exports(report["manifest"])
    if not before or not (quality.get("texts") or quality.get("tasks")):
        return ""
    found, now = before[0]["format"], report["manifest"]["recipe"].get("format")
    return f"This was measured in the format {found}, before the export to {now}; the weights are the same."


def as_tuned(manifest: dict[str, Any], folder: str) -> tuple[dict[str, Any], str]:
    """The recipe and the name of the folder that was written first."""
    before = exports(manifest)
    if not before:
        return manifest["recipe"], folder
    return {**manifest["recipe"], "format": before[0]["format"]}, str(before[0]["folder"])


def export_commands(manifest: dict[str, Any], folder: str) -> list[str]:
    """What made one folder of the other since, in order."""
    before = exports(manifest)
    if not before:
        return []
    names = [*(str(one["folder"]) for one in before[1:]), folder]
    formats = [*(str(one["format"]) for one in before[1:]), str(manifest["recipe"].get("format"))]
    return [
        " ".join(
            map(
                quote, ("roundel", "export", _path(str(one["folder"])), "-o", _path(name), "--format", format)
            )
        )
        for one, name, format in zip(before, names, formats, strict=True)
    ]


def _path(name: str) -> str:
    shown = printable(name)
    return f"./{shown}" if shown.startswith(("-", "~")) else shown
