"""What `roundel bench` prints and writes of what was measured."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import roundel
from roundel.cli.app import main
from roundel.system.seal import is_sealed


def figures(name: str, speed: float) -> dict[str, Any]:
    return {
        "name": name,
        "path": f"models/{name}",
        "decode": {"median": speed, "low": speed - 1, "high": speed + 1},
        "prefill": {"median": 100 * speed, "low": 90 * speed, "high": 110 * speed},
        "bytes_per_token": 1_500_000,
        "bandwidth_share": 0.614,
        "load_seconds": 2.5,
        "memory": {"before_load": 400_000_000, "loaded": 600_000_000, "peak": 700_000_000},
    }


FOUND = {
    "threads": 1,
    "prompt_tokens": 32,
    "context_tokens": 16,
    "new_tokens": 8,
    "rounds": 3,
    "bandwidth": {"median": 11.31e9, "low": 10e9, "high": 12e9},
    "models": [figures("large", 12.5), figures("small", 50.0)],
    "versions": {},
}


def test_a_row_for_each_model_and_a_file(tmp_path: Path, capsys, monkeypatch) -> None:
    given: dict[str, Any] = {}

    def bench(models: list[str], **how: Any) -> dict[str, Any]:
        given.update(how, models=models)
        return FOUND

    monkeypatch.setattr(roundel, "bench", bench, raising=False)
    file = tmp_path / "figures.json"
    words = ["bench", "large", "small", "--prompt", "32", "--context", "16", "--new", "8", "--rounds", "3"]
    monkeypatch.setattr(sys, "argv", ["roundel", *words, "--threads", "1", "--json", str(file)])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 0
    assert given.pop("progress") is not None
    assert given == {
        "models": ["large", "small"], "prompt": 32, "context": 16, "new": 8, "rounds": 3, "threads": 1,
        "trust_remote_code": False, "allow_pickle": False, "packed": None, "mode": "exact",
    }  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert "3 rounds in turns, 1 thread; memory is read at 11.3 (10.0 .. 12.0) GB/s" in lines[0]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert rows == [
        ["large", "12.5 (11.5 .. 13.5)", "1250 (1125 .. 1375)", "1.5 MB", "61%", "700.0 MB", "600.0 MB", "400.0 MB",
         "2.5 s"],
        ["small", "50.0 (49.0 .. 51.0)", "5000 (4500 .. 5500)", "1.5 MB", "61%", "700.0 MB", "600.0 MB", "400.0 MB",
         "2.5 s"],
    ]  # fmt: skip
    assert is_sealed(file, "figures")
    written = json.loads(file.read_text())
    del written["seal"]
    assert written == FOUND
