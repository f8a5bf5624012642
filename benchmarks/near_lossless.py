"""How close to the original a model comes per bit: RTN, GPTQ and SpQR side by side.

    python benchmarks/near_lossless.py MODEL --calibration c4.jsonl --in-order --text wiki.test.raw

Every variant is made by the command line in a process of its own (so that its peak memory is its own), reopened from
its folder, and measured on the same windows of 512 and of 2048 tokens. Prints a Markdown table and, with --json,
writes the figures as they come.
"""

import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import roundel
from variants import Judge, parser, quantize, read_rows, run_all

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


def main() -> None:
    """Run the comparison."""
    arguments = parser(__doc__, VARIANTS).parse_args()
    if arguments.from_json:
        print_table(read_rows(arguments.from_json, VARIANTS))
        return
    judge = Judge(arguments, WINDOWS)
    print_table(run_all(arguments, VARIANTS, lambda settings: run(arguments, settings, judge)))


def run(arguments: Namespace, settings: dict[str, Any], judge: Judge) -> dict[str, Any]:
    """One variant: quantize, reopen, measure."""
    with tempfile.TemporaryDirectory() as folder:
        row = quantize(arguments, settings, Path(folder) / "out")
        model, _ = roundel.load(Path(folder) / "out")
        return row | judge.figures(model)


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


if __name__ == "__main__":
    main()
