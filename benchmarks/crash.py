"""Kill a run at random moments, let it go on, and compare the bytes with an uninterrupted one.

    python benchmarks/crash.py MODEL --kills 30 --calibration c4.jsonl -- --method autoround --set iters=20

What stands behind `--` goes to `roundel quantize`. Every round begins a run in an empty folder and kills it (SIGKILL)
after a random part of the time that a whole run takes, again and again, until it ends by itself.
"""

import hashlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path


def main() -> None:
    """Run the comparison; leave with 1 if a byte differs."""
    arguments = parse()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        straight = Path(folder) / "straight"
        began = time.monotonic()
        subprocess.run(command(arguments, straight), check=True, stderr=subprocess.DEVNULL)
        length = time.monotonic() - began
        wanted = digests(straight)
        print(f"An uninterrupted run: {length:.0f} s, {len(wanted)} files", flush=True)
        moments = random.Random(arguments.seed)
        kills = different = rounds = 0
        while kills < arguments.kills:
            killed = Path(folder) / "killed"
            shutil.rmtree(killed, ignore_errors=True)
            died = one_round(arguments, killed, length, moments)
            kills, rounds = kills + died, rounds + 1
            found = digests(killed)
            wrong = [name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)]
            different += len(wrong)
            left = [path.name for path in Path(folder).iterdir() if path.name not in ("straight", "killed")]
            print(
                f"round {rounds}: killed {died} times; differing files: {wrong}; left over: {left}",
                flush=True,
            )
            different += len(left)
    print(f"{kills} kills in {rounds} rounds, {different} differences")
    sys.exit(bool(different))


def one_round(arguments: Namespace, out: Path, length: float, moments: random.Random) -> int:
    """Begin a run, kill it until it ends by itself; how often it was killed."""
    died = 0
    while True:
        process = subprocess.Popen(
            command(arguments, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            _, said = process.communicate(timeout=length * moments.uniform(0.1, 1.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            died += 1
            continue
        # Killed when the output was there already, all that is left to do is to say so.
        complete = died and "exists and is not empty" in said
        if process.returncode and not complete:
            sys.exit(f"the run ended with {process.returncode}: {said[-2000:]}")
        return died


def command(arguments: Namespace, out: Path) -> list[str]:
    """The command line."""
    text = ["--calibration", arguments.calibration] if arguments.calibration else []
    return [
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


def digests(folder: Path) -> dict[str, str]:
    """Of every file but the manifest, which holds times."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != "roundel.json"
    }


def parse() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--kills", type=int, default=30, help="at least so many")
    parser.add_argument("--calibration")
    parser.add_argument("--folder", help="where the outputs are made")
    parser.add_argument("--seed", type=int, default=0)
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    return parser.parse_args(given[:cut], Namespace(rest=given[cut + 1 :]))


if __name__ == "__main__":
    main()
