"""Does one step size of FlexRound and LRQ fit all models, widths and lengths?

    python benchmarks/step_size.py MODEL [MODEL ...] --blocks 3

Every model is tuned in several settings with the rule's own step size and with multiples of it. Printed is the mean
relative loss of the blocks on held-out samples, and how far each is above the best of its row.
"""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

import roundel
from roundel.model.blocks import find_blocks
from roundel.model.source import open_source

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
SETTINGS: dict[str, dict[str, Any]] = {
    "W4 channel, 60 iterations": {"bits": 4, "group_size": -1, "iters": 60},
    "W3 channel, 60 iterations": {"bits": 3, "group_size": -1, "iters": 60},
    "W2 g32 symmetric, 60 iterations": {"bits": 2, "group_size": 32, "sym": True, "iters": 60},
    "W3 channel, 240 iterations": {"bits": 3, "group_size": -1, "iters": 240},
    "W4A8 channel, 60 iterations": {"bits": 4, "group_size": -1, "act_bits": 8, "kv_bits": 8, "iters": 60},
}


def main() -> None:
    """Run the comparison."""
    arguments = parse()
    print("| model | setting | method | " + " | ".join(f"x{factor:g}" for factor in FACTORS) + " |")
    print("|---" * (3 + len(FACTORS)) + "|")
    rows = []
    for path in arguments.models:
        for setting in arguments.settings:
            for method in arguments.methods:
                losses = [loss(arguments, path, SETTINGS[setting], method, factor) for factor in FACTORS]
                rows.append({"model": path, "setting": setting, "method": method, "losses": losses})
                cells = " | ".join(f"{value:.5f} (+{value / min(losses) - 1:.0%})" for value in losses)
                print(f"| {Path(path).name} | {setting} | {method} | {cells} |", flush=True)
                if arguments.json:
                    Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def loss(arguments: Namespace, path: str, setting: dict[str, Any], method: str, factor: float) -> float:
    """Mean relative loss of the blocks after tuning with a multiple of the rule's step size."""
    common = {"nsamples": arguments.nsamples, "seqlen": arguments.seqlen, "batch_size": 4, "shuffle": False}
    recipe = roundel.Recipe(method=method, **setting, **common)
    step = factor * recipe.resolved_division_lr(recipe.bits, recipe.iters)
    # The model itself, in memory: what it started from is gone afterwards.
    source = open_source(path, allow_pickle=True)
    keep_first_blocks(source.model, arguments.blocks)
    result = roundel.quantize(
        source.model,
        recipe.with_settings(division_lr=step),
        calibration=arguments.calibration,
        tokenizer=source.tokenizer,
    )
    blocks = result.manifest["blocks"]
    return sum(block["loss_end"] for block in blocks) / len(blocks)


def keep_first_blocks(model: PreTrainedModel, count: int) -> None:
    """Cut the stack of decoder blocks short."""
    stack = find_blocks(model)
    owner, _, name = stack.name.rpartition(".")
    setattr(model.get_submodule(owner), name, nn.ModuleList(stack.blocks[:count]))
    model.config.num_hidden_layers = min(count, len(stack))


def parse() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--blocks", type=int, default=3, help="use only so many blocks of each model")
    parser.add_argument("--calibration", default="self")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", choices=("flexround", "lrq"), default=["flexround", "lrq"])
    parser.add_argument("--nsamples", type=int, default=64)
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
