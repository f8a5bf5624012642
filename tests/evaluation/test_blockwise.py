"""A model that is measured block by block gives the logits that it gives in memory, in every format."""

from pathlib import Path

import pytest
import torch

import roundel
from roundel.errors import ModelError
from zoo import EVERY, zoo_model

pytestmark = pytest.mark.slow("measures 31 architectures in two ways")

# Blocks in turn are decoded: whole models are here, too.
MEASURED = {"window": 64, "limit": 3, "packed": False}
RTN = {"method": "rtn", "group_size": 32}
FORMATS = {
    "dense": RTN,
    "roundel": {**RTN, "sym": False, "bits": 3},
    "compressed-tensors": RTN,
    "asymmetric": {**RTN, "sym": False, "format": "compressed-tensors"},
    "mixed": {**RTN, "sym": False, "format": "compressed-tensors", "layers": {"*.v_proj": {"bits": 8}}},
    "activations": {**RTN, "format": "compressed-tensors", "act_bits": 8, "kv_bits": 8},
    "activations, dense": {**RTN, "format": "dense", "act_bits": 8, "kv_bits": 4},
    "8 bit": {**RTN, "bits": 8, "format": "compressed-tensors", "act_bits": 8, "group_size": -1},
    "head": {**RTN, "format": "roundel", "lm_head": True},
}


def both_ways(
    model: Path | str, reference: Path, held_out: Path
) -> tuple[roundel.Evaluation, roundel.Evaluation]:
    whole, blocks = (
        roundel.evaluate(model, reference=reference, text=str(held_out), block_by_block=by_blocks, **MEASURED)
        for by_blocks in (False, True)
    )
    return whole, blocks


@pytest.mark.parametrize("name", FORMATS)
def test_every_format(name: str, llama: Path, held_out: Path, tmp_path: Path) -> None:
    settings = {"format": name, **FORMATS[name]}
    roundel.quantize(llama, roundel.Recipe(**settings), output=tmp_path / "out")
    whole, blocks = both_ways(tmp_path / "out", llama, held_out)
    assert whole == blocks
    assert whole.texts[0].kl.mean.value > 0


def test_spqr_is_read_without_the_accelerator_that_its_client_wants(
    llama: Path, held_out: Path, tmp_path: Path
) -> None:
    recipe = roundel.Recipe(
        method="spqr", bits=3, group_size=16, scale_bits=3, zero_bits=3, outliers=0.01, tile_rows=16, nsamples=8,
        seqlen=64, format="spqr",
    )  # fmt: skip
    kept = roundel.quantize(llama, recipe, calibration="pydoc", output=tmp_path / "out")
    whole, blocks = both_ways(tmp_path / "out", llama, held_out)
    assert whole == blocks
    halves = kept.model
    for parameter in halves.parameters():  # not the buffers: frequencies stay in fp32
        parameter.data = parameter.half()
    for name, weight in kept.weights.items():
        halves.get_submodule(name).weight.data = weight.dequantize(torch.float16)
    in_memory = roundel.evaluate(
        halves, tokenizer=kept.tokenizer, reference=llama, text=str(held_out), **MEASURED
    )
    assert in_memory.texts == whole.texts


@pytest.mark.parametrize("architecture", EVERY)
def test_every_architecture(architecture: str, held_out: Path) -> None:
    model = zoo_model(architecture)
    trusted = {"trust_remote_code": True}
    whole, blocks = (
        roundel.evaluate(model, text=str(held_out), block_by_block=by_blocks, **MEASURED, **trusted)
        for by_blocks in (False, True)
    )
    assert whole == blocks


def test_experts_stay_packed_on_disk(held_out: Path, tmp_path: Path) -> None:
    model = zoo_model("gpt_oss")
    roundel.quantize(model, roundel.Recipe(**RTN, format="roundel"), output=tmp_path / "out")
    whole, blocks = both_ways(tmp_path / "out", model, held_out)
    assert whole == blocks


def test_packed_experts_under_other_names_are_measured_whole(held_out: Path, tmp_path: Path) -> None:
    model = zoo_model("mixtral")
    roundel.quantize(model, roundel.Recipe(**RTN, sym=True), output=tmp_path / "out")
    with pytest.raises(ModelError, match="has to be measured whole"):
        roundel.evaluate(tmp_path / "out", text=str(held_out), block_by_block=True, **MEASURED)


def test_a_model_larger_than_memory_goes_block_by_block(llama: Path, held_out: Path, monkeypatch) -> None:
    from roundel.workflows import measuring

    told: list[str] = []

    class Listener(roundel.Progress):
        def say(self, text: str) -> None:
            told.append(text)

    whole = roundel.evaluate(llama, text=str(held_out), progress=Listener(), **MEASURED)
    assert told == []
    monkeypatch.setattr(measuring, "free_memory", lambda: 1_000_000)
    monkeypatch.setattr(measuring, "Whole", None)
    assert roundel.evaluate(llama, text=str(held_out), progress=Listener(), **MEASURED) == whole
    assert told == [f"{llama.name} is measured block by block: memory does not hold it"]


def test_one_block_is_in_memory_at_a_time(llama: Path, held_out: Path, monkeypatch) -> None:
    from roundel.model.capture import BlockRunner

    seen: list[list[bool]] = []
    run = BlockRunner.run

    def watched(self: BlockRunner, index: int, hidden: torch.Tensor) -> torch.Tensor:
        seen.append([next(block.parameters()).is_meta for block in self.stack.blocks])
        return run(self, index, hidden)

    monkeypatch.setattr(BlockRunner, "run", watched)
    roundel.evaluate(llama, text=str(held_out), block_by_block=True, **MEASURED)
    assert seen == [[False, True]] * 3 + [[True, False]] * 3
