"""Golden figures: how far each method is from the original, written to golden/quality.json and docs/quality.md.

    python benchmarks/quality.py                                  the small model in golden/, a minute
    python benchmarks/quality.py --smollm2 SmolLM2.gguf --calibration c4.jsonl --in FOLDER      its part too, an hour

A change that moves a figure beyond the tolerance that stands beside it fails the tests, which run the fast part. Who
moves one on purpose runs this command, and says why in the commit. The small model is a Llama of two blocks that was
trained for some seconds on Python's reference manual, and is calibrated and measured on it: what counts is that its
weights are trained, and the same on every machine. It computes in float32, as not every processor multiplies bfloat16.
"""

import json
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import roundel

HERE = Path(__file__).parent
MODEL, FILE = HERE / "golden" / "llama", HERE / "golden" / "quality.json"
PAGE = HERE.parent / "docs" / "quality.md"
# Relative differences that other processors, threads and libraries may make: rounding decides by less than a bit where
# numbers are computed once; hundreds of signed steps amplify it.
COMPUTED, TUNED = 0.02, 0.10
PLAIN: dict[str, Any] = {"format": "roundel", "group_size": 32}
SHORT: dict[str, Any] = {**PLAIN, "nsamples": 32, "seqlen": 64, "calibration": "pydoc", "amp": "float32"}
STEPS: dict[str, Any] = {**SHORT, "iters": 60, "batch_size": 4}
FAST: dict[str, dict[str, Any]] = {
    "RTN W4": {"method": "rtn", "bits": 4, **PLAIN},
    "RTN W3": {"method": "rtn", "bits": 3, **PLAIN},
    "RTN W3, searched": {"method": "rtn", "bits": 3, "start": "search", **SHORT},
    "GPTQ W4": {"method": "gptq", "bits": 4, **SHORT},
    "GPTQ W3": {"method": "gptq", "bits": 3, **SHORT},
    "SpQR W3, 1 % outliers": {"method": "spqr", "bits": 3, "outliers": 0.01, **SHORT, "group_size": 16},
    "AutoRound W4": {"method": "autoround", "bits": 4, **STEPS},
    "AutoRound W3": {"method": "autoround", "bits": 3, **STEPS},
    "FlexRound W3": {"method": "flexround", "bits": 3, **STEPS},
    "LRQ W3": {"method": "lrq", "bits": 3, **STEPS},
    "AutoRound W4A8 KV8": {"method": "autoround", "bits": 4, "act_bits": 8, "kv_bits": 8, **STEPS},
}
SMOL: dict[str, dict[str, Any]] = {
    "AutoRound W4": {"method": "autoround", "bits": 4, "group_size": 64, "iters": 40},
    "AutoRound W3": {"method": "autoround", "bits": 3, "group_size": 64, "iters": 40},
    "SpQR W4, 4.75 bit": {"method": "spqr", "bits": 4, "target_bits": 4.75, "format": "roundel"},
    "SpQR W3, 1 % outliers": {
        "method": "spqr",
        "bits": 3,
        "group_size": 16,
        "outliers": 0.01,
        "format": "roundel",
    },
}
SMOL_DATA: dict[str, Any] = {"nsamples": 64, "seqlen": 256, "batch_size": 4, "sym": False}
Figures = dict[str, dict[str, float]]


def main() -> None:
    """Measure, and write the file and the page."""
    command = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    command.add_argument("--smollm2", help="its GGUF file")
    command.add_argument("--calibration", help="text for SmolLM2's calibration")
    command.add_argument(
        "--in", dest="folder", help="folder for SmolLM2's variants; those that are there are kept"
    )
    arguments = command.parse_args()
    golden = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    golden["small"] = measure_fast()
    if arguments.smollm2:
        if not (arguments.calibration and arguments.folder):
            command.error("--smollm2 wants --calibration and --in too")
        golden["smollm2"] = measure_smollm2(arguments.smollm2, arguments.calibration, Path(arguments.folder))
    golden["versions"] = {"torch": torch.__version__, "python": sys.version.split()[0]}
    FILE.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(golden), encoding="utf-8")


def measure_fast() -> Figures:
    """The small model, every variant in this process."""
    found: Figures = {}
    with TemporaryDirectory() as folder:
        for name, settings in FAST.items():
            out = Path(folder) / "out"
            roundel.quantize(
                MODEL, roundel.Recipe.create(**settings), output=out, overwrite=True, held_out=None
            )
            found[name] = measure(out, MODEL, 64, 24)
    return found


def measure_smollm2(model: str, calibration: str, folder: Path) -> Figures:
    """SmolLM2, by the command line, in processes of their own."""
    found: Figures = {}
    for name, settings in SMOL.items():
        out = folder / "".join(c if c.isalnum() else "-" for c in name.lower())
        command = [
            sys.executable,
            "-m",
            "roundel",
            "quantize",
            model,
            "-o",
            str(out),
            "--calibration",
            calibration,
        ]
        for key, value in {**SMOL_DATA, **settings}.items():
            command += ["--set", f"{key}={json.dumps(value)}"]
        if not out.is_dir():
            subprocess.run(command, check=True)
        found[name] = measure(out, model, 512, 16)
    return found


def measure(out: Path, original: Path | str, window: int, limit: int) -> dict[str, float]:
    """KL, top-1 agreement and perplexity on Python's manual, and the size."""
    text = roundel.evaluate(out, reference=original, text="pydoc", window=window, limit=limit).texts[0]
    manifest = json.loads((out / "roundel.json").read_text(encoding="utf-8"))
    assert text.kl is not None
    assert text.top1 is not None
    assert text.perplexity_ratio is not None
    return {
        "kl": round(text.kl.mean.value, 6),
        "top1": round(text.top1.value, 5),
        "perplexity_ratio": round(text.perplexity_ratio.value, 5),
        "bits_per_weight": round(manifest["bits_per_weight"], 5),
    }


def tolerance(settings: Mapping[str, Any]) -> float:
    """Relative, of KL."""
    return TUNED if "iters" in settings else COMPUTED


def page(golden: Mapping[str, Any]) -> str:
    """The figures as tables."""
    lines = [
        "# Golden figures",
        "",
        "Written by `benchmarks/quality.py`, which says how; the tests compare the first table with what they measure.",
        "",
        "## The small model in benchmarks/golden",
        "",
        "24 windows of 64 tokens of Python's manual; calibration: 32 x 64 tokens of it; seed 42.",
        "",
        *_table(golden["small"], FAST),
    ]
    if "smollm2" in golden:
        lines += [
            "",
            "## SmolLM2-135M-Instruct",
            "",
            "16 windows of 512 tokens of Python's manual; calibration: 64 x 256 tokens of C4, 40 iterations; seed 42. "
            "Not run by the tests.",
            "",
            *_table(golden["smollm2"], SMOL),
        ]
    return "\n".join([*lines, ""])


def _table(figures: Figures, variants: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = [
        "| | bits per weight | KL to the original | tolerance | top-1 agreement | perplexity over the original's |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in figures.items():
        lines.append(
            f"| {name} | {row['bits_per_weight']:.3f} | {row['kl']:.5f} | {tolerance(variants[name]):.0%} | "
            f"{row['top1']:.2%} | {row['perplexity_ratio']:.4f} |"
        )
    return lines


if __name__ == "__main__":
    main()
