"""How long a run was planned to take, and how long it took: one beside the other, in one run.

    python benchmarks/estimates.py MODEL --calibration c4.jsonl -- --set bits=3 --iters 50 --nsamples 64

What stands behind `--` goes to both `roundel plan` and `roundel quantize`: options of both, or `--set KEY=VALUE`.
"""

import re
import subprocess
import sys
import time
from argparse import ArgumentParser
from tempfile import TemporaryDirectory

UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def main() -> None:
    """Print both, and their ratio."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--held-out", default="pydoc")
    parser.add_argument("more", nargs="*")
    arguments = parser.parse_args()
    common = [arguments.model, "--calibration", arguments.calibration, *arguments.more]
    planned = run("plan", *common).stdout
    found = re.search(r"([\d.]+) (s|min|h) in all", planned)
    if found is None:
        sys.exit(planned)
    estimate = float(found[1]) * UNITS[found[2]]
    with TemporaryDirectory() as folder:
        began = time.perf_counter()
        run("quantize", *common, "-o", f"{folder}/out", "--held-out", arguments.held_out)
        took = time.perf_counter() - began
    print(f"planned {estimate:.0f} s, took {took:.0f} s, with the start of Python: {took / estimate:.2f}")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """A command of ours; its output, or the end where it fails."""
    done = subprocess.run([sys.executable, "-m", "roundel", *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stderr[-2000:]}")
    return done


if __name__ == "__main__":
    main()
