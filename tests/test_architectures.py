"""Every architecture with every kind of method: quantized, written, opened again through transformers, and near the
original. What random weights would give is measured too: the bound is far below it.
"""

from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

import roundel
from zoo import EVERY, OWN_CODE, manual_text, zoo_model

pytestmark = pytest.mark.slow("quantizes 31 architectures")

DATA = {"nsamples": 16, "seqlen": 64, "batch_size": 8}
GRID = {"bits": 3, "group_size": 32}
RECIPES = [
    roundel.Recipe(name="rtn", method="rtn", **GRID, sym=True),
    roundel.Recipe(name="gptq", method="gptq", **GRID, **DATA, format="dense"),
    roundel.Recipe(name="spqr", method="spqr", bits=3, outliers=0.005, **DATA, format="dense"),
    roundel.Recipe(name="autoround", method="autoround", iters=10, **GRID, **DATA, format="dense"),
    roundel.Recipe(name="lrq", method="lrq", iters=10, **GRID, **DATA, format="dense"),
]
# Conv1D, and experts that checkpoints keep in one tensor: compressed-tensors has no form for them.
NEVER_PACKED = ("gpt2", "gpt_oss", "llama4")
# Of the divergence that fresh weights have.
BOUND = 0.05


def recipes_for(name: str) -> list[roundel.Recipe]:
    """Round to nearest is written packed, where that can be."""
    if name in NEVER_PACKED:
        return [RECIPES[0].with_settings(format="dense", name="rtn"), *RECIPES[1:]]
    return RECIPES


def opened(folder: Path, name: str):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=name in OWN_CODE).eval()


@torch.no_grad()
def log_probabilities(model, windows: torch.Tensor) -> torch.Tensor:
    return model(input_ids=windows).logits.float().log_softmax(-1)


def divergence(wanted: torch.Tensor, found: torch.Tensor) -> float:
    return float(functional.kl_div(found, wanted, log_target=True, reduction="none").sum(-1).mean())


@pytest.mark.parametrize("name", EVERY)
def test_an_architecture_is_quantized_and_opens_again(name: str, tmp_path: Path) -> None:
    folder, own_code = zoo_model(name), name in OWN_CODE
    recipes = recipes_for(name)
    manifests = roundel.sweep(
        folder, recipes, tmp_path / "out", calibration="pydoc", trust_remote_code=own_code
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=own_code)
    ids = torch.tensor(tokenizer(manual_text(), verbose=False)["input_ids"])
    windows = ids[: 12 * 64].view(12, 64)
    original = opened(folder, name)
    wanted = log_probabilities(original, windows)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = AutoModelForCausalLM.from_config(original.config, trust_remote_code=own_code).eval()
    random = divergence(wanted, log_probabilities(fresh, windows))
    found = {}
    for method in manifests:
        reloaded = opened(tmp_path / "out" / method, name)
        found[method] = divergence(wanted, log_probabilities(reloaded, windows))
        assert 0 < found[method] < BOUND * random, (method, found[method], random)
    # What reads data gets nearer than what does not.
    assert all(found[method] < found["rtn"] for method in ("gptq", "spqr", "autoround", "lrq")), found
    for manifest in manifests.values():
        linears = [layer for layer in manifest["layers"] if layer["block"] is not None]
        assert all((layer["bits"] is None) == bool(layer["reason"]) for layer in linears)
        assert {layer["block"] for layer in linears} == set(range(original.config.num_hidden_layers))
