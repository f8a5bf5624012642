"""Several recipes in a sweep, and one after the other: time side by side, and whether the bytes are the same.

    python benchmarks/sweep.py MODEL --recipes gptq-w4g128,gptq-w3g128,spqr-near-lossless --calibration c4.jsonl \
        -- --set nsamples=32 --set use_quant_input=false

What stands behind `--` goes to every command. Seconds are those of whole commands.
"""

import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path


def main() -> None:
    """Print the times; leave with 1 if a byte differs."""
    arguments = parse()
    names = arguments.recipes.split(",")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        together = run(arguments, "sweep", Path(folder) / "sweep", "--recipes", arguments.recipes)
        print(f"sweep of {len(names)}: {together:.1f} s", flush=True)
        alone, different = 0.0, []
        for name in names:
            out = Path(folder) / "alone" / Path(name).stem
            seconds = run(arguments, "quantize", out, "--recipe", name)
            alone += seconds
            print(f"{name} alone: {seconds:.1f} s", flush=True)
            different += [
                f"{out.name}/{path.name}"
                for path in out.iterdir()
                if path.name != "roundel.json"
                and path.read_bytes() != (Path(folder) / "sweep" / out.name / path.name).read_bytes()
            ]
    print(f"together {together / alone:.2f} of the time alone ({alone:.1f} s); differing files: {different}")
    sys.exit(bool(different))


def run(arguments: Namespace, command: str, out: Path, *more: str) -> float:
    """A command's seconds."""
    text = ["--calibration", arguments.calibration] if arguments.calibration else []
    began = time.monotonic()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "roundel",
            command,
            arguments.model,
            "-o",
            str(out),
            *more,
            *text,
            *arguments.rest,
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr)
    return time.monotonic() - began


def parse() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--recipes", required=True, help="with commas between")
    parser.add_argument("--calibration")
    parser.add_argument("--folder", help="where the outputs are made")
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    return parser.parse_args(given[:cut], Namespace(rest=given[cut + 1 :]))


if __name__ == "__main__":
    main()
