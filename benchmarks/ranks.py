"""The same run on one process, and shared among several: time side by side, and how far the results differ.

    python benchmarks/ranks.py MODEL --calibration c4.jsonl --text wiki.test.raw -- --method autoround --set iters=40

What stands behind `--` goes to `roundel quantize`. Every number of ranks has all cores of the machine together: one
process uses them all, several share them out, unless `--threads` gives each so many. Runs take turns, so that a busy
machine is busy for all of them; seconds are those of the run itself, without starting Python, the least of all turns.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

import roundel


def main() -> None:
    """Print a row for every number of ranks."""
    arguments = parse()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        outputs = {size: Path(folder) / str(size) for size in arguments.ranks}
        seconds: dict[int, list[float]] = {size: [] for size in arguments.ranks}
        for _ in range(arguments.turns):
            for size, out in outputs.items():
                shutil.rmtree(out, ignore_errors=True)
                quantize(arguments, size, out)
                seconds[size].append(json.loads((out / "roundel.json").read_text())["seconds"])
        one = arguments.ranks[0]
        print(
            "| ranks | threads each | seconds | time, of one | equal codes | loss after | KL | peak of a rank, MB |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for size, out in outputs.items():
            manifest = json.loads((out / "roundel.json").read_text())
            losses = [block["loss_end"] for block in manifest["blocks"] if block["loss_end"] is not None]
            loss = f"{sum(losses) / len(losses):.5f}" if losses else ""
            least = min(seconds[size])
            print(
                f"| {size} | {threads(arguments, size)} | {least:.1f} | {least / min(seconds[one]):.2f} | "
                f"{equal(outputs[one], out):.2%} | {loss} | {kl(arguments, out)} | "
                f"{manifest['peak_memory_bytes'] / 1e6:.0f} |",
                flush=True,
            )


def threads(arguments: Namespace, size: int) -> int:
    """Of each of so many processes."""
    return arguments.threads or max(1, (os.cpu_count() or 1) // size)


def quantize(arguments: Namespace, size: int, out: Path) -> None:
    """One run."""
    text = ["--calibration", arguments.calibration] if arguments.calibration else []
    command = [
        sys.executable,
        "-m",
        "roundel",
        "quantize",
        arguments.model,
        "-o",
        str(out),
        *text,
        *arguments.rest,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads(arguments, size))}
    done = subprocess.run([*command, "--nproc", str(size)], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def equal(one: Path, other: Path) -> float:
    """Share of equal codes."""
    first, second = roundel.read_integers(one), roundel.read_integers(other)
    same = sum(int((second[name].codes == weight.codes).sum()) for name, weight in first.items())
    return same / sum(weight.codes.numel() for weight in first.values())


def kl(arguments: Namespace, out: Path) -> str:
    """KL to the original, nats per token."""
    if arguments.text is None:
        return ""
    figures = roundel.evaluate(
        out, reference=arguments.model, text=arguments.text, window=arguments.window, limit=arguments.limit
    )
    return f"{figures.texts[0].kl.mean.value:.4f}"


def parse() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="the first is compared with")
    parser.add_argument("--threads", type=int, help="of every process; left out: all cores shared out")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--calibration")
    parser.add_argument("--text", help="held-out text, for the KL")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--folder", help="where the outputs are made")
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    rest = ["--format", "roundel", *given[cut + 1 :]]
    return parser.parse_args(given[:cut], Namespace(rest=rest))


if __name__ == "__main__":
    main()
