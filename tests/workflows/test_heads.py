"""The head of every architecture, quantized on request; and that the run leaves a whole report."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import roundel
from zoo import EVERY, OWN_CODE, zoo_model

pytestmark = [pytest.mark.reports, pytest.mark.slow("quantizes heads in every format")]

RECIPE = roundel.Recipe(
    method="gptq", bits=4, group_size=32, lm_head=True, nsamples=16, seqlen=64, batch_size=8, format="dense"
)


def opened(folder: Path, name: str):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=name in OWN_CODE).eval()


@pytest.mark.parametrize("name", EVERY)
def test_a_head_is_quantized_on_request(name: str, tmp_path: Path) -> None:
    """By its own inputs, whatever it is called; one tied to the embedding gets a weight of its own."""
    folder, own_code = zoo_model(name), name in OWN_CODE
    done = roundel.quantize(
        folder, RECIPE, calibration="pydoc", output=tmp_path / "out", stream=True, trust_remote_code=own_code
    )
    original, reloaded = opened(folder, name), opened(tmp_path / "out", name)
    head = next(key for key, m in original.named_modules() if m is original.get_output_embeddings())
    record = next(layer for layer in done.manifest["layers"] if layer["name"] == head)
    assert (record["bits"], record["tokens"]) == (4, 16 * 64)
    weights = [model.get_submodule(head).weight for model in (reloaded, original)]
    assert not torch.equal(*weights)
    assert len(weights[0][0, :32].unique()) <= 16
    embeddings = [model.get_input_embeddings().weight for model in (reloaded, original)]
    assert torch.equal(*embeddings)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    (text,) = report["quality"]["texts"]
    assert 0 < text["kl"]["mean"]["value"] < 0.5
    assert head in report["details"]
    assert "</html>" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
