"""What each rank does in the tests: quantize a model with several recipes, one after the other."""

import json
import sys
from pathlib import Path

import torch

import roundel
from roundel.system.ranks import destroy_ranks, init_ranks


def quantize_all(model: Path, work: dict[str, dict], folder: Path) -> None:
    torch.set_num_threads(1)
    for name, entry in work.items():
        recipe = roundel.Recipe(**entry["recipe"])
        done = roundel.quantize(model, recipe, output=folder / name, **entry["how"])
        if done.weights is not None:
            state = done.model.state_dict()
            for key, weight in done.weights.items():
                stack, _, index = key.rpartition(".")
                found = state[stack][int(index)] if stack in state else state[f"{key}.weight"]
                assert torch.equal(weight.dequantize(found.dtype), found)
            digest = sum(float(tensor.double().abs().sum()) for tensor in state.values())
            ranks = init_ranks()
            assert ranks.in_order([digest], [ranks.number], ranks.size) == [digest] * ranks.size
    several = ("rtn", "search", "autoround")
    if work.keys() >= {*several, "gptq"}:
        sweep_and_keep(model, work, several, folder)
    destroy_ranks()


def sweep_and_keep(model: Path, work: dict, several: tuple[str, ...], folder: Path) -> None:
    """The same again with several recipes in lockstep, and with the result in memory."""
    chosen = [roundel.Recipe(**work[name]["recipe"], name=name) for name in several]
    manifests = [
        roundel.sweep(
            model,
            [r.with_settings(calibration="pydoc", name=r.name) if r.needs_calibration else r for r in chosen],
            folder / "sweep",
        )
        for _ in ("done", "there already")
    ]
    assert json.loads(json.dumps(manifests[0])) == manifests[1]
    in_memory = roundel.quantize(model, roundel.Recipe(**work["gptq"]["recipe"]), **work["gptq"]["how"])
    assert len(in_memory.weights) == 14


if __name__ == "__main__":  # by torchrun
    quantize_all(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3]))
