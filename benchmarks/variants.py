"""What the benchmarks share: variants made by the command line, reopened from their folders, measured side by side."""

import json
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import roundel
from roundel.calibration.options import CalibrationOptions
from roundel.calibration.self_text import sample_from_model
from roundel.evaluation.measure import measure
from roundel.evaluation.predict import Whole
from roundel.evaluation.quality import summarize
from roundel.evaluation.reference import Original
from roundel.evaluation.windows import EvaluationText, evaluation_windows

Settings = dict[str, Any]
Row = dict[str, Any]
KEPT = ("bits_per_weight", "paper_bits", "bits_per_parameter", "outlier_share", "trained_share", "seconds",
        "peak_memory_bytes")  # fmt: skip


class Judge:
    """The original model, and the windows on which all variants are measured.

    Args:
        arguments: of the command line.
        windows: sizes in tokens, and how many of each.
    """

    def __init__(self, arguments: Namespace, windows: tuple[tuple[int, int], ...]) -> None:
        original, tokenizer = roundel.load(arguments.model)
        self.texts = {size: _windows(arguments, original, tokenizer, size, limit) for size, limit in windows}
        asked = Original(Whole(original), None, None, {})
        self.wanted = {size: list(asked.distributions(text.windows)) for size, text in self.texts.items()}

    def figures(self, model: Any) -> Row:
        """KL, agreement and perplexities, the key ending with the window's size."""
        row: Row = {}
        for size, text in self.texts.items():
            measured = measure(Whole(model), text.windows, self.wanted[size])
            quality = summarize(text.name, text.convention, measured)
            row |= {
                f"perplexity_{size}": quality.perplexity.value,
                f"reference_perplexity_{size}": quality.reference_perplexity.value,
                f"kl_{size}": quality.kl.mean.value,
                f"top1_{size}": quality.top1.value,
            }
        return row


def _windows(arguments: Namespace, model: Any, tokenizer: Any, size: int, limit: int) -> EvaluationText:
    if arguments.text != "self":
        return evaluation_windows(arguments.text, tokenizer, size, limit)
    # Another seed than the calibration's: no row is the same.
    rows = CalibrationOptions(nsamples=limit, seqlen=size, seed=arguments.seed + 1)
    words = f"{limit} windows of {size} tokens that the original writes, seed {rows.seed}"
    return EvaluationText("self", sample_from_model(model, tokenizer, rows), words)


def quantize(arguments: Namespace, settings: Settings, out: Path) -> Row:
    """The command line, in a process of its own; what the run's manifest says."""
    settings = dict(settings)
    command = [sys.executable, "-m", "roundel", "quantize", arguments.model, "-o", str(out)]
    recipe = settings.pop("recipe", None)
    if recipe:
        command += ["--recipe", recipe]
    if recipe or roundel.Recipe.create(**settings).needs_calibration:
        settings |= {"nsamples": arguments.nsamples, "seqlen": arguments.seqlen, "seed": arguments.seed}
        settings["shuffle"] = not arguments.in_order
        command += ["--calibration", arguments.calibration]
    for key, value in settings.items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    manifest = json.loads((out / "roundel.json").read_text(encoding="utf-8"))
    return {key: manifest[key] for key in KEPT}


def run_all(
    arguments: Namespace, variants: Mapping[str, Settings], one: Callable[[Settings], Row]
) -> list[Row]:
    """Every chosen variant in turn; rows are printed, and written, as they come."""
    rows: list[Row] = []
    for label in arguments.variants or variants:
        rows.append({"variant": label, **one(variants[label])})
        print(json.dumps(rows[-1]), flush=True)
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return rows


def read_rows(files: list[str], variants: Mapping[str, Settings]) -> list[Row]:
    """Rows of earlier runs, in the order of the variants."""
    rows = [row for file in files for row in json.loads(Path(file).read_text(encoding="utf-8"))]
    order = list(variants)
    return sorted(rows, key=lambda row: order.index(row["variant"]))


def parser(doc: str | None, variants: Mapping[str, Settings]) -> ArgumentParser:
    """The command line that all share."""
    found = ArgumentParser(description=doc.splitlines()[0] if doc else None)
    found.add_argument("model")
    found.add_argument("--calibration", default="self")
    found.add_argument("--in-order", action="store_true", help="calibration documents as they come")
    found.add_argument("--text", default="pydoc", help="a file, or `self`: what the original writes")
    found.add_argument("--variants", nargs="+", choices=variants)
    found.add_argument("--nsamples", type=int, default=128)
    found.add_argument("--seqlen", type=int, default=256)
    found.add_argument("--seed", type=int, default=42)
    found.add_argument("--json", help="write the figures here as they come")
    found.add_argument("--from-json", nargs="+", help="print the table of earlier runs")
    return found
