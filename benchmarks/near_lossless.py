"""How close to the original a model comes per bit: RTN, GPTQ and SpQR side by side.

    python benchmarks/near_lossless.py MODEL --calibration c4.jsonl --in-order --text wiki.test.raw

Every variant is made by the command line in a process of its own (so that its peak memory is its own), reopened from
its folder, and measured on the same windows of 512 and of 2048 tokens. Prints a Markdown table and, with --json,
writes the figures as they come.
"""

import json
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import roundel
from roundel.evaluation.measure import measure
from roundel.evaluation.windows import evaluation_windows

TWO_LEVEL = {"group_size": 16, "round_zero": False, "format": "roundel"}
PUBLISHED = {**TWO_LEVEL, "scale_bits": 3, "zero_bits": 3, "tile_rows": 16}
VARIANTS: dict[str, dict[str, Any]] = {
    "RTN 4 bit, channel": {"method": "rtn", "bits": 4, "group_size": -1},
    "RTN 4 bit, g64": {"method": "rtn", "bits": 4, "group_size": 64},
    "RTN 4 bit, g16 on two levels": {"method": "rtn", "bits": 4, **PUBLISHED},
    "GPTQ 4 bit, channel": {"method": "gptq", "bits": 4, "group_size": -1},
    "GPTQ 4 bit, g128": {"method": "gptq", "bits": 4, "group_size": 128},
    "GPTQ 4 bit, g64": {"method": "gptq", "bits": 4, "group_size": 64},
    "spqr-near-lossless": {"recipe": "spqr-near-lossless"},
    "RTN 3 bit, channel": {"method": "rtn", "bits": 3, "group_size": -1},
    "RTN 3 bit, g64": {"method": "rtn", "bits": 3, "group_size": 64},
    "GPTQ 3 bit, channel": {"method": "gptq", "bits": 3, "group_size": -1},
    "GPTQ 3 bit, g64": {"method": "gptq", "bits": 3, "group_size": 64},
    "spqr-4bit-budget": {"recipe": "spqr-4bit-budget"},
    "spqr-published": {"recipe": "spqr-published"},
    "SpQR 5 bit": {"recipe": "spqr-near-lossless", "bits": 5, "target_bits": 5.75},
    "SpQR 6 bit": {"recipe": "spqr-near-lossless", "bits": 6, "target_bits": 6.75},
    "spqr-tuned": {"recipe": "spqr-tuned"},
}
WINDOWS = ((512, 16), (2048, 4))


class Remembering(torch.nn.Module):
    """A model that computes the logits of every window once."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.kept: dict[bytes, torch.Tensor] = {}

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        """The model's logits of `[1, S]` token ids."""
        key = input_ids.numpy().tobytes()
        if key not in self.kept:
            self.kept[key] = self.model(input_ids=input_ids, use_cache=use_cache).logits
        return SimpleNamespace(logits=self.kept[key])


def main() -> None:
    """Run the comparison."""
    arguments = parse()
    original, tokenizer = roundel.load(arguments.model)
    reference = Remembering(original)
    texts = {size: evaluation_windows(arguments.text, tokenizer, size, limit) for size, limit in WINDOWS}
    rows: list[dict[str, Any]] = []
    for label in arguments.variants:
        row = {"variant": label, **run(arguments, VARIANTS[label], reference, texts)}
        rows.append(row)
        print(json.dumps(row), flush=True)
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print_table(rows)


def run(
    arguments: Namespace, settings: dict[str, Any], reference: Remembering, texts: dict[int, Any]
) -> dict[str, Any]:
    """One variant: quantize, reopen, measure."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        quantize(arguments, settings, out)
        manifest = json.loads((out / "roundel.json").read_text(encoding="utf-8"))
        model, _ = roundel.load(out)
        keys = ("bits_per_weight", "paper_bits", "bits_per_parameter", "outlier_share", "seconds")
        row: dict[str, Any] = {key: manifest[key] for key in (*keys, "peak_memory_bytes")}
        for size, text in texts.items():
            quality = measure(model, text.windows, reference)
            row |= {
                f"perplexity_{size}": quality.perplexity,
                f"reference_perplexity_{size}": quality.reference_perplexity,
                f"kl_{size}": quality.kl,
                f"top1_{size}": quality.top1_agreement,
            }
    return row


def quantize(arguments: Namespace, settings: dict[str, Any], out: Path) -> None:
    """The command line, in a process of its own."""
    settings = dict(settings)
    command = [sys.executable, "-m", "roundel", "quantize", arguments.model, "-o", str(out)]
    recipe = settings.pop("recipe", None)
    if recipe:
        command += ["--recipe", recipe]
    if settings.get("method") != "rtn":
        settings |= {"nsamples": arguments.nsamples, "seqlen": arguments.seqlen, "seed": arguments.seed}
        settings["shuffle"] = not arguments.in_order
        command += ["--calibration", arguments.calibration]
    for key, value in settings.items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def print_table(rows: list[dict[str, Any]]) -> None:
    """A Markdown table."""
    first = rows[0]
    originals = ", ".join(f"{first[f'reference_perplexity_{size}']:.2f} ({size})" for size, _ in WINDOWS)
    print(f"\nOriginal: perplexity {originals}.\n")
    print("| variant | bits/weight | as papers count | bits/parameter | outliers | KL 512 | KL 2048 | top-1 512 | "
          "perplexity 512 | perplexity 2048 | seconds | peak GB |")  # fmt: skip
    print("|---" * 12 + "|")
    for row in rows:
        print(
            f"| {row['variant']} | {row['bits_per_weight']:.3f} | {row['paper_bits']:.3f} | "
            f"{row['bits_per_parameter']:.2f} | {row['outlier_share']:.2%} | {row['kl_512']:.4f} | "
            f"{row['kl_2048']:.4f} | {row['top1_512']:.1%} | {row['perplexity_512']:.2f} | "
            f"{row['perplexity_2048']:.2f} | {row['seconds']:.0f} | {row['peak_memory_bytes'] / 1e9:.1f} |"
        )


def parse() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--calibration", default="self")
    parser.add_argument("--in-order", action="store_true", help="calibration documents as they come")
    parser.add_argument("--text", default="pydoc")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--nsamples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
