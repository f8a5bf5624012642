"""A recipe of ours beside auto-round, in turns: processor time of the whole command, and KL.

    python benchmarks/fast.py MODEL --auto-round PYTHON --calibration c4.jsonl --text wiki.test.raw \
        --bits 4 3 2 --theirs 100 200 --recipe roundel-fast --pairs 3

Both get the same rows of token ids (a recipe takes as many of the first as it wants), bits and groups (asymmetric
grids), each in a process of its own, on all cores; PYTHON is the interpreter of an environment with auto-round, which
runs with its own defaults. Whose turn is first changes from pair to pair. What was written is opened and measured on
the same windows. Seconds of the processor are those of the whole process and its children: imports, opening the model
and writing it included.
"""

import json
import resource
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import roundel
from roundel.calibration.gather import gather_calibration
from roundel.recipe import Recipe
from roundel.system.progress import Progress

HERE = Path(__file__).parent


def main() -> None:
    """Print a line of JSON for each run, then a table."""
    arguments = parse()
    rows = []
    with TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.pt"
        save_tokens(arguments, tokens)
        for bits in arguments.bits:
            for pair in range(arguments.pairs):
                names = [f"auto-round {iters}" for iters in arguments.theirs] + arguments.recipe
                for name in names if pair % 2 == 0 else names[::-1]:
                    row = {"bits": bits, "pair": pair, "name": name}
                    row |= run(
                        arguments, name, bits, tokens, Path(folder) / f"{bits}-{pair}-{names.index(name)}"
                    )
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    print("\n| bits | | KL | processor, s | wall, s |\n|---|---|---|---|---|")
    for bits in arguments.bits:
        for name in dict.fromkeys(row["name"] for row in rows):
            own = [row for row in rows if (row["bits"], row["name"]) == (bits, name)]
            kl, processor, wall = (median(row[key] for row in own) for key in ("kl", "processor", "wall"))
            print(f"| {bits} | {name} | {kl:.4f} | {processor:.0f} | {wall:.0f} |")


def save_tokens(arguments: Namespace, path: Path) -> None:
    """The rows that both calibrate on: documents in order, each row as the model's texts begin."""
    recipe = Recipe(nsamples=arguments.nsamples, seqlen=arguments.seqlen, shuffle=False)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    config = AutoConfig.from_pretrained(arguments.model)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = gather_calibration(arguments.calibration, model, tokenizer, recipe, Progress())
    torch.save(found.tokens, path)


def run(arguments: Namespace, name: str, bits: int, tokens: Path, output: Path) -> dict[str, float]:
    """Quantize in a process of its own, and measure what was written."""
    grid = ["--bits", str(bits), "--group-size", str(arguments.group_size)]
    if name.startswith("auto-round"):
        iters = name.split()[1]
        command = [
            arguments.auto_round, str(HERE / "in_auto_round.py"), arguments.model, str(tokens), str(output),
            *grid, "--iters", iters, "--seed", str(arguments.seed),
        ]  # fmt: skip
    else:
        recipe, *settings = name.split()
        data = [f"seed={arguments.seed}"]
        command = [
            sys.executable, "-m", "roundel", "quantize", arguments.model, "-o", str(output), "--recipe", recipe,
            *grid, "--calibration", str(tokens), "--held-out", "none",
            *(word for setting in [*data, *settings] for word in ("--set", setting)),
        ]  # fmt: skip
    began, before = time.perf_counter(), busy()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    wall, processor = time.perf_counter() - began, busy() - before
    # auto-round makes a folder of its own inside.
    written = next(output.rglob("config.json")).parent
    take_type_of(arguments.model, written)
    found = roundel.evaluate(
        written, reference=arguments.model, text=arguments.text, window=512, limit=arguments.windows
    )
    return {"kl": found.texts[0].kl.mean.value, "processor": processor, "wall": wall}


def take_type_of(model: str, written: Path) -> None:
    """Have it computed in the original's type: auto-round's files of 4 bits say float16, which Gemma 3 overflows."""
    about, original = (json.loads((Path(folder) / "config.json").read_text()) for folder in (written, model))
    about.pop("torch_dtype", None)
    about["dtype"] = original.get("dtype", original.get("torch_dtype"))
    (written / "config.json").write_text(json.dumps(about, indent=2))


def busy() -> float:
    """Seconds of the processor that child processes have taken so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def parse() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--auto-round", help="a Python that has auto-round")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--recipe", nargs="*", default=["roundel-fast"], help="'NAME key=value key=value'")
    parser.add_argument("--theirs", type=int, nargs="*", default=[100, 200], help="iterations of auto-round")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--nsamples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args()


if __name__ == "__main__":
    main()
