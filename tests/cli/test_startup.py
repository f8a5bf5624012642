"""Help, lists and mistyped words are answered before anything heavy is imported."""

import subprocess
import sys

import pytest
import typer.main

from roundel.cli.app import app

# Each takes a tenth of a second or more.
HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "datasets",
    "matplotlib",
    "compressed_tensors",
    "lm_eval",
    "pyarrow",
)

COMMANDS = sorted(typer.main.get_command(app).commands)


def imported_by(*words: str) -> list[str]:
    """What of the heavy libraries a process has after a command."""
    script = f"""
import sys
sys.argv = ["roundel", *{list(words)!r}]
try:
    from roundel.cli.app import main
    main()
finally:
    print("heavy:", *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    (found,) = [line for line in done.stderr.splitlines() if line.startswith("heavy:")]
    return found.split()[1:]


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["recipes"],
        *([command, "--help"] for command in COMMANDS),
        ["nonsense"],
        ["quantize", "model", "-o", "out", "--bits", "many"],
        ["quantize", "model", "-o", "out", "--set", "no_such_key=1"],
        ["quantize", "model", "-o", "out", "--recipe", "no-such-recipe"],
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported_for(words: list[str]) -> None:
    assert imported_by(*words) == []


def test_the_package_alone_is_light() -> None:
    script = f"import sys, roundel; sys.exit(any(name in sys.modules for name in {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_test_sees_a_heavy_import() -> None:
    assert "torch" in imported_by("inspect", "no-such-folder")
