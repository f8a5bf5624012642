"""Weights that stay on disk until they are expected are the very weights."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

import roundel
from roundel.errors import ModelError
from roundel.model.blocks import find_blocks
from roundel.model.source import fingerprint, open_source
from roundel.model.storage import InMemory, OnDisk
from zoo import zoo_model


def test_blocks_and_what_lies_around_them_come_and_go(any_model: Path, load_model, tmp_path: Path) -> None:
    whole, _ = load_model(any_model)
    source = open_source(str(any_model), stream_with=tmp_path)
    assert isinstance(source.storage, OnDisk)
    stack = find_blocks(source.model)
    wanted = whole.state_dict()

    def present() -> set[str]:
        return {name for name, tensor in source.model.state_dict().items() if not tensor.is_meta}

    small = present()  # accelerate wants one part on the CPU
    assert not any(name.startswith(f"{stack.name}.") for name in small)
    assert sum(wanted[name].numel() for name in small) < 1000
    name = stack.block_name(1)
    source.storage.load(stack.blocks[1], name)
    assert present() - small == {key for key in wanted if key.startswith(f"{name}.")}
    for key in present():
        assert torch.equal(source.model.state_dict()[key], wanted[key])
    source.storage.release(stack.blocks[1], name)
    assert present() == small
    for _ in range(2):
        with source.storage.around(source.model, stack), source.storage.around(source.model, stack):
            inside = source.model.state_dict()
            assert present() == {key for key in wanted if not key.startswith(f"{stack.name}.")}
            assert all(torch.equal(inside[key], wanted[key]) for key in present())
            tied = source.model.get_output_embeddings().weight is source.model.get_input_embeddings().weight
            assert tied == bool(source.model.config.tie_word_embeddings)
        assert present() == small


def test_the_fingerprint_does_not_ask_where_the_weights_are(any_model: Path, tmp_path: Path) -> None:
    streamed = open_source(str(any_model), stream_with=tmp_path)
    assert fingerprint(streamed.model, streamed.storage) == fingerprint(open_source(str(any_model)).model)


def test_a_block_is_brought_back(llama: Path, load_model, tmp_path: Path) -> None:
    whole, _ = load_model(llama)
    streamed = open_source(str(llama), stream_with=tmp_path)
    for model, storage in ((whole, InMemory()), (streamed.model, streamed.storage)):
        block, name = model.model.layers[0], "model.layers.0"
        storage.load(block, name)
        before = {key: tensor.clone() for key, tensor in block.state_dict().items()}
        restore = storage.saved(block, name)
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.zero_()
        restore()
        assert all(torch.equal(tensor, before[key]) for key, tensor in block.state_dict().items())


def test_several_files_and_one_are_streamed_alike(llama: Path, load_model, tmp_path: Path) -> None:
    whole, _ = load_model(llama)
    whole.save_pretrained(tmp_path / "shards", max_shard_size="200kB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    recipe = roundel.Recipe(method="rtn", group_size=32)
    for name, source in (("one", llama), ("several", tmp_path / "shards")):
        roundel.quantize(source, recipe, output=tmp_path / name, stream=True)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "several")]
    assert files[0] == files[1]


def test_a_tied_weight_under_its_other_name(tmp_path: Path) -> None:
    """Some checkpoints hold the head and not the embedding."""
    shutil.copytree(zoo_model("bloom"), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors.pop("transformer.word_embeddings.weight")
    save_file(tensors, file, {"format": "pt"})
    recipe = roundel.Recipe(method="rtn", group_size=32)
    for name, source in (("usual", zoo_model("bloom")), ("other", tmp_path / "model")):
        roundel.quantize(source, recipe, output=tmp_path / name, stream=True)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("usual", "other")]
    assert files[0] == files[1]


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts that a checkpoint stores one by one, and the model in one tensor."""
    folder = tmp_path_factory.mktemp("mixtral") / "model"
    config = MixtralConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        MixtralForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_checkpoint_whose_tensors_are_not_the_models_own(mixtral: Path, tmp_path: Path) -> None:
    """transformers merges experts when it loads; the merged copies lie in the work folder."""
    recipe = roundel.Recipe(method="rtn", group_size=32, format="dense")
    roundel.quantize(mixtral, recipe, output=tmp_path / "whole")
    roundel.quantize(mixtral, recipe, output=tmp_path / "streamed", stream=True)
    ids = torch.arange(20)[None]
    found = [
        AutoModelForCausalLM.from_pretrained(tmp_path / name)(ids).logits for name in ("whole", "streamed")
    ]
    assert torch.equal(*found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["streamed", "whole"]


def test_a_source_that_goes_away_is_said(llama: Path, load_model, tmp_path: Path) -> None:
    whole, _ = load_model(llama)
    whole.save_pretrained(tmp_path / "model")
    source = open_source(str(tmp_path / "model"), stream_with=tmp_path / "converted")
    (tmp_path / "model" / "model.safetensors").unlink()
    stack = find_blocks(source.model)
    with pytest.raises(ModelError, match=r"model\.layers\.0\..* can no longer be read from the source"):
        source.storage.load(stack.blocks[0], stack.block_name(0))
