"""Language models inside models that see or hear: the text decoder is quantized, everything else is carried over.

The oracles are transformers itself (the folder opened by the class that its config names, on text, on a picture, on
sound) and safetensors (bytes of the towers).
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import roundel
from model.wrappers import (
    CASES,
    FORMATS,
    GPTQ,
    NAMES,
    build,
    logits,
    opened,
    quantized,
    text_logits,
)
from roundel.model.blocks import find_blocks
from roundel.workflows.open import open_model

pytestmark = pytest.mark.slow("builds and quantizes multimodal models")


@pytest.mark.parametrize("name", NAMES)
def test_the_blocks_are_those_of_the_text_decoder(name: str) -> None:
    assert find_blocks(build(name)).name == CASES[name].blocks


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", NAMES)
def test_a_written_folder_opens_by_its_own_class_with_equal_logits(
    name: str, kind: str, multimodal: Callable[[str], Path], tmp_path: Path
) -> None:
    case, original = CASES[name], opened(multimodal(name))
    done = quantized(multimodal(name), tmp_path / "out", GPTQ.with_settings(format=kind))
    again = roundel.load(tmp_path / "out", packed=False)[0] if kind == "roundel" else opened(tmp_path / "out")
    assert type(again).__name__ == case.name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [case.name]
    sensed = case.sensed()
    # transformers unpacks at the first pass of the whole model.
    assert torch.equal(logits(again, sensed), logits(done.model, sensed))
    assert torch.equal(text_logits(again), text_logits(done.model))
    # The picture counts in it, and the rounding too.
    blind = {key: value * 0 if value.is_floating_point() else value for key, value in sensed.items()}
    assert not torch.equal(logits(again, blind), logits(again, sensed))
    assert not torch.equal(logits(original, sensed), logits(again, sensed))


@pytest.mark.parametrize("name", NAMES)
def test_towers_are_carried_over_and_listed(
    name: str, multimodal: Callable[[str], Path], tmp_path: Path
) -> None:
    case, model = CASES[name], build(name)
    packed = GPTQ.with_settings(format="compressed-tensors")
    layers = quantized(multimodal(name), tmp_path / "out", packed).manifest["layers"]
    before, after = (
        load_file(folder / "model.safetensors") for folder in (multimodal(name), tmp_path / "out")
    )
    plain = {key for key in before if key in after}
    assert all(torch.equal(before[key].view(torch.uint8), after[key].view(torch.uint8)) for key in plain)
    # Of the checkpoint nothing but the decoder's Linears is packed.
    stack = find_blocks(model)
    linears = sum(isinstance(m, nn.Linear) for block in stack.blocks for m in block.modules())
    assert len(before.keys() - plain) == linears == sum(layer["bits"] is not None for layer in layers)
    table = {layer["name"]: layer for layer in layers}
    beside = {
        key: m
        for key, m in model.named_modules()
        if key.startswith(case.towers) and (isinstance(m, nn.Linear) or key in table)
    }
    assert beside
    for key in beside:
        assert table[key]["reason"].startswith("no part of the text decoder"), key
    # Clients look for the names that the checkpoint has.
    ignored = set(json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"])
    kept = {key.removesuffix(".weight") for key in plain if key.endswith(".weight") and before[key].ndim == 2}
    embeddings = {key for key in kept if "embed" in key or "position" in key}
    assert kept - ignored <= embeddings
    assert {key for key, m in beside.items() if isinstance(m, nn.Linear)} <= ignored


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["gemma3", "llava", "qwen2_5_vl", "mllama", "blip_2"])
def test_streamed_is_the_same_and_is_measured_block_by_block(
    name: str, kind: str, multimodal: Callable[[str], Path], tmp_path: Path, held_out: Path
) -> None:
    recipe = roundel.Recipe(
        name="t",
        method="autoround",
        bits=4,
        group_size=32,
        sym=True,
        iters=3,
        nsamples=8,
        seqlen=32,
        batch_size=4,
    ).with_settings(format=kind)
    quantized(multimodal(name), tmp_path / "whole", recipe)
    quantized(multimodal(name), tmp_path / "streamed", recipe, stream=True)
    whole, streamed = (
        {file.name: file.read_bytes() for file in (tmp_path / one).glob("*.safetensors")}
        for one in ("whole", "streamed")
    )
    assert whole == streamed
    text = {"text": str(held_out), "window": 32, "limit": 3, "reference": multimodal(name)}
    at_once = roundel.evaluate(tmp_path / "whole", **text, block_by_block=False).texts[0]
    in_turn = roundel.evaluate(tmp_path / "whole", **text, block_by_block=True).texts[0]
    assert at_once.kl.mean.value > 0
    assert in_turn.kl.mean.value == pytest.approx(at_once.kl.mean.value, rel=1e-4)


def test_perplexity_and_generation_on_text(
    multimodal: Callable[[str], Path], tmp_path: Path, held_out: Path
) -> None:
    for name in ("qwen2_5_vl", "blip_2", "mllama"):
        quantized(multimodal(name), tmp_path / name)
        found = roundel.evaluate(tmp_path / name, text=str(held_out), window=32, limit=4).texts[0]
        assert 500 < found.perplexity.value < 2500  # of random weights, about the vocabulary
        assert len(roundel.generate(tmp_path / name, "The statement", max_new_tokens=4)) >= len(
            "The statement"
        )


def test_a_model_writes_its_own_text(multimodal: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("llava", "blip_2"):
        done = roundel.quantize(multimodal(name), GPTQ, output=tmp_path / name, held_out=None)
        assert done.manifest["calibration"]["source"] == "text sampled from the model itself"


def test_streamed_weights_of_a_packed_folder_are_those_of_the_whole(
    multimodal: Callable[[str], Path], tmp_path: Path
) -> None:
    quantized(multimodal("llava"), tmp_path / "out", GPTQ.with_settings(format="compressed-tensors"))
    whole = roundel.load(tmp_path / "out", packed=False)[0]
    text_logits(whole)  # transformers unpacks at the first pass
    streamed = open_model(
        tmp_path / "out", None, False, False, quantized=True, stream_with=tmp_path / "converted"
    )
    for name, parameter in streamed.model.named_parameters():
        found = streamed.storage.tensor(streamed.model, name)
        assert found.shape == parameter.shape
        assert torch.equal(found, whole.get_parameter(name)), name
