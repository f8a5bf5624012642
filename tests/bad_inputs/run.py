"""A command in this process: what it said, what it printed, and which files came, went or changed."""

import contextlib
import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from bad_inputs.box import Box
from bad_inputs.case import Case
from roundel.cli.app import main
from zoo import zoo_model


@dataclass(frozen=True)
class Said:
    """What a command left: exit code, its lines on stderr, what it printed, and files that came, went or changed."""

    code: int
    lines: list[str]
    printed: str
    changed: list[str]

    @property
    def message(self) -> str:
        """The line with the error."""
        return re.sub("^[eE]rror: ", "", self.lines[-1])


def run(*arguments: Any) -> tuple[int, str, str]:
    """A command in this process, through `main` with its error handling: exit code, stderr, stdout."""
    err, out, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["roundel", *map(str, arguments)]
    try:
        with (
            contextlib.redirect_stderr(err),
            contextlib.redirect_stdout(out),
            pytest.raises(SystemExit) as leaving,
        ):
            main()
    finally:
        sys.argv = before
    return int(leaving.value.code or 0), err.getvalue(), out.getvalue()


def outcome(case: Case) -> Said:
    """Run a case in a folder of its own, whose name is left out of what it says."""
    with TemporaryDirectory() as name, contextlib.chdir(name):
        box = Box(Path(name).resolve())
        arguments = case.arrange(box)
        if arguments[0] == "quantize" and "-o" not in arguments:
            arguments += ["-o", box / "out"]
        before = contents(box.folder)
        code, err, out = run(*arguments)
        after = contents(box.folder)
        changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
        return Said(code, _neutral(err, box.folder).splitlines(), out, changed)


def contents(folder: Path) -> dict[str, bytes | str | None]:
    """All that is below a folder: bytes of files, aims of links, nothing of folders."""
    return {
        str(path.relative_to(folder)): (
            str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        )
        for path in folder.rglob("*")
    }


def _neutral(text: str, folder: Path) -> str:
    """Without what differs between machines, runs and versions."""
    text = text.replace(f"'{folder}/", "'/FOLDER/")
    for place in (folder, zoo_model("llama").parent):
        text = text.replace(f"{place}/", "").replace(str(place), "FOLDER")
    text = re.sub(r"known keys: .*", "known keys: ...", text)
    text = re.sub(r"one of autoround.* is expected", "one of ... is expected", text)
    text = re.sub(r"\(Expected one of .*\)", "(...)", text)
    text = re.sub(r"\.unfinished-\w+", ".unfinished-...", text)
    # Of trained weights, and training differs between CPUs.
    text = re.sub(r"\b\d+ of \d+ of its groups", "... of its groups", text)
    text = re.sub(r"\b[0-9a-f]{32}\b", "0123...", text)
    return re.sub(r"x{9,}", "xxx...", text)
