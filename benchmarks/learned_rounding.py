"""Learned rounding compared: RTN, GPTQ, AutoRound, FlexRound, LRQ and hybrids at W4A16, W3A16, W4A8, W8A8.

    python benchmarks/learned_rounding.py MODEL --calibration c4.jsonl --in-order --text wiki.test.raw

Per output channel, asymmetric (W8A8: static inputs per tensor); the learned methods at equal iterations and batch, so
at an equal number of tokens.
Every variant is made by the command line in a process of its own, reopened from its folder, and measured on the same
windows: as it is, and once more with an 8-bit KV cache on top (unless it was tuned with one).
"""

import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import roundel
from roundel.activations.attach import ActivationQuantizer
from roundel.activations.scheme import Activations, ActivationScheme
from variants import Judge, parser, quantize, read_rows, run_all

KV8 = Activations(kv=ActivationScheme(8, sym=False, static=False))
SIZE = 512
GRIDS: dict[str, dict[str, Any]] = {
    "W4A16": {"bits": 4},
    "W3A16": {"bits": 3},
    "W4A8": {"bits": 4, "act_bits": 8},
    "W4A8KV8": {"bits": 4, "act_bits": 8, "kv_bits": 8},
    "W8A8KV8": {"bits": 8, "act_bits": 8, "act_scale": "static", "kv_bits": 8},
    "W8A8KV8 smoothed": {"bits": 8, "act_bits": 8, "act_scale": "static", "kv_bits": 8, "smooth": 0.5},
}
METHODS: dict[str, dict[str, Any]] = {
    "RTN": {"method": "rtn"},
    "RTN, searched": {"method": "rtn", "start": "search"},
    "GPTQ": {"method": "gptq"},
    "AutoRound": {"method": "autoround"},
    "FlexRound": {"method": "flexround"},
    "LRQ": {"method": "lrq"},
    "FlexRound + V": {"method": "flexround", "offsets": True},
    "LRQ + V": {"method": "lrq", "offsets": True},
    "AutoRound, Adam": {"method": "autoround", "optimizer": "adamw", "lr_schedule": "cosine"},
}
LEARNED = list(METHODS)[3:]
VARIANTS = {
    f"{grid} {method}": {"group_size": -1, "format": "roundel", **GRIDS[grid], **METHODS[method]}
    for grid in GRIDS
    for method in METHODS
}


def main() -> None:
    """Run the comparison."""
    command = parser(__doc__, VARIANTS)
    command.add_argument("--iters", type=int, default=60)
    command.add_argument("--batch-size", type=int, default=4)
    arguments = command.parse_args()
    if arguments.from_json:
        print_table(read_rows(arguments.from_json, VARIANTS))
        return
    judge = Judge(arguments, ((SIZE, 16),))
    print_table(run_all(arguments, VARIANTS, lambda settings: run(arguments, settings, judge)))


def run(arguments: Namespace, settings: dict[str, Any], judge: Judge) -> dict[str, Any]:
    """One variant: quantize, reopen, measure without and with an 8-bit KV cache."""
    if settings["method"] in ("autoround", "flexround", "lrq"):
        settings = {**settings, "iters": arguments.iters, "batch_size": arguments.batch_size}
    with tempfile.TemporaryDirectory() as folder:
        row = quantize(arguments, settings, Path(folder) / "out")
        model, _ = roundel.load(Path(folder) / "out")
        row |= judge.figures(model)
        if "kv_bits" not in settings:
            ActivationQuantizer(model, [], KV8).enabled = True
            row |= {f"kv8_{key}": value for key, value in judge.figures(model).items()}
    return row


def print_table(rows: list[dict[str, Any]]) -> None:
    """A Markdown table."""
    print(f"\nOriginal: perplexity {rows[0][f'reference_perplexity_{SIZE}']:.2f}.\n")
    print("| variant | KL | with KV8 | perplexity | with KV8 | top-1 | trained | seconds | peak GB |")
    print("|---" * 9 + "|")
    for row in rows:
        kl, perplexity = (
            f"{row[f'kv8_{key}_{SIZE}']:.{digits}f}" if f"kv8_{key}_{SIZE}" in row else ""
            for key, digits in (("kl", 4), ("perplexity", 2))
        )
        print(
            f"| {row['variant']} | {row[f'kl_{SIZE}']:.4f} | {kl} | {row[f'perplexity_{SIZE}']:.2f} | {perplexity} | "
            f"{row[f'top1_{SIZE}']:.1%} | {row['trained_share']:.0%} | {row['seconds']:.0f} | "
            f"{row['peak_memory_bytes'] / 1e9:.1f} |"
        )


if __name__ == "__main__":
    main()
