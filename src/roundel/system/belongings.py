"""What in a folder is Roundel's, and may be removed with it: the files that its manifest lists, and nothing else.

`roundel.json` in every output folder lists all other files with their sizes and SHA-256 hashes (`sha256sum` gives the
same), and is sealed itself; the report's files and the model card, which are written when the folder has its name
already, are known by their seals. A file of another name, a link, a folder, or one of ours with other bytes, is the
user's.

A former design believed --overwrite, and deleted a thesis.
"""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any

from roundel.errors import OutputError
from roundel.system.files import reported
from roundel.system.seal import Kind, is_sealed

MANIFEST = "roundel.json"
REPORT, PAGE, CARD = "report.json", "report.html", "README.md"
_SEALED: dict[str, Kind] = {MANIFEST: "manifest", REPORT: "report", PAGE: "page", CARD: "card"}

_Stamp = tuple[int, int, int, int]

# Hashes of files that did not change since: a folder is looked at before the work, and again after it.
_hashes: dict[_Stamp, str] = {}


@dataclass(frozen=True)
class Stock:
    """What was found in a folder.

    Attributes:
        folder: which.
        ours: files by their names in it, and by what is seen when they change.
        homes: folders in it that hold listed files, or held them.
    """

    folder: Path
    ours: dict[str, _Stamp]
    homes: set[str]


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of all files of a folder, by their names in it, for its manifest."""
    return {
        name: {"bytes": path.stat().st_size, "sha256": _hash(path)}
        for name, path in sorted(_walk(folder).items())
        if path.is_file() and name not in _SEALED
    }


def take_stock(folder: Path) -> Stock:
    """Look at everything in a folder that is to be replaced.

    Raises:
        OutputError: something in it is not of Roundel's making; the message names it.
    """
    with reported(folder):
        listed = listed_files(folder)
        homes = {parent for name in listed for parent in _parents(name)}
        ours: dict[str, _Stamp] = {}
        foreign: list[str] = []
        for name, path in sorted(_walk(folder).items()):
            if path.is_dir() and not path.is_symlink():
                if name not in homes:
                    foreign.append(f"{name}/")
            elif _is_ours(name, path, listed):
                ours[name] = _stamp(path)
            else:
                foreign.append(name + (" (changed since)" if name in listed or name in _SEALED else ""))
    if foreign:
        if (folder / MANIFEST).is_file() and not listed:
            raise OutputError(
                f"{folder} holds a {MANIFEST} that was changed since, or that an older roundel wrote, so it does not "
                "say which files are roundel's: choose another folder, or move this one away"
            )
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise OutputError(
            f"{folder} holds {', '.join(foreign[:3])}{more}, which roundel did not write: --overwrite replaces what "
            "roundel wrote, and nothing else; move it away, or choose another folder"
        )
    return Stock(folder, ours, homes)


def own_files(folder: Path) -> dict[str, bool]:
    """The files that an output folder has by Roundel, by their names, and whether each is there as it was written.

    Raises:
        OutputError: something cannot be read, or the manifest was changed.
    """
    with reported(folder):
        listed = listed_files(folder)
        if not listed:
            raise OutputError(
                f"{folder} holds no {MANIFEST} as roundel wrote it, so nothing says which files are roundel's: a "
                "folder that roundel quantize wrote is expected"
            )
        names = [*listed, *(name for name in _SEALED if (folder / name).exists())]
        return {name: _is_ours(name, folder / name, listed) for name in sorted(names)}


def listed_in(manifest: Path) -> set[str]:
    """The names that a manifest alone lists; none where it was changed, or is none."""
    return set(_listed_by(manifest))


def remove(stock: Stock) -> bool:
    """Remove what was found, unless it changed since, and the folder if nothing else is in it; whether it is gone."""
    # The manifest goes last: should this be ended halfway, it says what the rest is.
    files = sorted(stock.ours.keys() - {MANIFEST})
    for name in [*files, *sorted(stock.homes, key=len, reverse=True), *(stock.ours.keys() & {MANIFEST}), "."]:
        path = stock.folder / name
        with suppress(OSError):  # gone, or something came into a folder
            if name in stock.homes or path == stock.folder:
                path.rmdir()
            elif _stamp(path) == stock.ours[name]:
                path.unlink()
    return not stock.folder.exists()


def listed_files(folder: Path) -> dict[str, Any]:
    """The files that the manifest lists; none where there is no manifest, or one that was changed."""
    path = folder / MANIFEST
    return {} if path.is_symlink() else _listed_by(path)


def _listed_by(path: Path) -> dict[str, Any]:
    if not path.is_file() or not is_sealed(path, "manifest"):
        return {}
    found = json.loads(path.read_text(encoding="utf-8")).get("files")
    return found if isinstance(found, dict) else {}


def _is_ours(name: str, path: Path, listed: dict[str, Any]) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    if name in _SEALED:
        return is_sealed(path, _SEALED[name])
    wanted = listed.get(name)
    return wanted is not None and path.stat().st_size == wanted["bytes"] and _hash(path) == wanted["sha256"]


def _walk(folder: Path) -> dict[str, Path]:
    """Everything below a folder by its name in it, with / between; links are not followed."""

    def fail(error: OSError) -> None:
        raise error

    return {
        (Path(where) / name).relative_to(folder).as_posix(): Path(where) / name
        for where, folders, files in os.walk(folder, onerror=fail)
        for name in (*folders, *files)
    }


def _parents(name: str) -> list[str]:
    return [parent.as_posix() for parent in Path(name).parents if parent != Path()]


def _stamp(path: Path) -> _Stamp:
    found = path.lstat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _hash(path: Path) -> str:
    stamp = _stamp(path)
    if stamp not in _hashes:
        with path.open("rb") as file:
            _hashes[stamp] = file_digest(file, "sha256").hexdigest()
    return _hashes[stamp]
