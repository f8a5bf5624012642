"""Compare methods on one model: KL to the original, perplexity, agreement, time.

    python benchmarks/methods.py MODEL --calibration c4.jsonl --text wiki.test.raw --bits 4 3 2

Every variant is quantized with the same calibration rows, written, reopened from its folder and measured on
the same windows; nothing is taken from memory. Prints a Markdown table and, with --json, writes the figures.
"""

import json
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import roundel
from roundel.cli.display import TerminalProgress

METHODS: dict[str, dict[str, Any]] = {
    "rtn": {"method": "rtn"},
    "rtn-search": {"method": "rtn", "start": "search"},
    "autoround": {"method": "autoround"},
    "autoround-published": {
        "loss": "mse",
        "method": "autoround",
        "start": "minmax",
        "keep": "best-minibatch",
        "minmax_limit": 1.0,
    },
    "signround": {"method": "signround"},
    "gptq": {"method": "gptq"},
}


def main() -> None:
    """Run the comparison."""
    arguments = parse()
    rows = []
    for bits in arguments.bits:
        for method in arguments.methods:
            for seed in arguments.seeds if method != "rtn" else arguments.seeds[:1]:
                row = run(arguments, bits, method, seed)
                rows.append(row)
                print(json.dumps(row), flush=True)
    first = rows[0]
    print(f"\nOriginal: perplexity {first['reference_perplexity']:.2f}. {first['convention']}.\n")
    print("| bits | method | seed | bits/weight | KL | perplexity | top-1 | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['bits']} | {row['method']} | {row['seed']} | {row['bits_per_weight']:.3f} | {row['kl']:.4f} "
            f"| {row['perplexity']:.2f} | {row['top1_agreement']:.1%} | {row['seconds']:.0f} |"
        )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def run(arguments: Namespace, bits: int, method: str, seed: int) -> dict[str, Any]:
    """One variant: quantize, write, reopen, measure."""
    settings: dict[str, Any] = {**METHODS[method], "bits": bits, "group_size": arguments.group_size}
    settings["sym"] = arguments.sym
    if method != "rtn":
        settings |= {"nsamples": arguments.nsamples, "seqlen": arguments.seqlen, "seed": seed}
        settings |= {"shuffle": not arguments.in_order, "add_bos": not arguments.no_bos}
        settings["batch_size"] = arguments.batch_size
    if METHODS[method]["method"] not in ("rtn", "gptq"):
        settings["iters"] = arguments.iters
    recipe = roundel.Recipe(**settings)
    progress = TerminalProgress()
    with tempfile.TemporaryDirectory() as folder:
        result = roundel.quantize(
            arguments.model,
            recipe,
            calibration=arguments.calibration if recipe.needs_calibration else None,
            output=Path(folder) / "out",
            progress=progress,
        )
        found = roundel.evaluate(
            Path(folder) / "out",
            reference=arguments.model,
            text=arguments.text,
            window=arguments.window,
            limit=arguments.windows,
            progress=progress,
        )
    manifest = result.manifest
    text = found.texts[0]
    return {
        "convention": text.convention,
        "perplexity": text.perplexity.value,
        "reference_perplexity": text.reference_perplexity.value,
        "kl": text.kl.mean.value,
        "top1_agreement": text.top1.value,
        "bits": bits,
        "method": method,
        "seed": seed,
        "bits_per_weight": manifest["bits_per_weight"],
        "seconds": manifest["seconds"],
        "amp": manifest["amp"],
        "peak_memory_bytes": manifest["peak_memory_bytes"],
    }


def parse() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--calibration", default="self")
    parser.add_argument("--in-order", action="store_true", help="calibration documents as they come")
    parser.add_argument(
        "--no-bos", action="store_true", help="calibration rows are cut out of running text; windows are not"
    )
    parser.add_argument("--text", default="pydoc")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["rtn", "rtn-search", "autoround"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--sym", action="store_true")
    parser.add_argument("--iters", type=int, default=100)
    parser.add_argument("--nsamples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
