import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from bad_inputs.box import UP, Box
from roundel.errors import ModelError
from roundel.model.source import fingerprint, open_source


@pytest.fixture
def copy_of_llama(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "modèle avec espaces"))


def test_one_file_and_shards_are_the_same_model(llama: Path, tmp_path: Path) -> None:
    whole = open_source(str(llama))
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    sharded = open_source(str(tmp_path))
    assert fingerprint(sharded.model) == fingerprint(whole.model)
    assert whole.tokenizer is not None
    assert sharded.tokenizer is None
    assert not whole.model.training


def test_the_fingerprint_sees_one_changed_weight(llama: Path) -> None:
    model = open_source(str(llama)).model
    before = fingerprint(model)
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-6
    assert fingerprint(model) != before


def test_unicode_paths(copy_of_llama: Path) -> None:
    assert open_source(str(copy_of_llama)).tokenizer is not None


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder", "~/nowhere", "a/b/c"])
def test_a_missing_folder(source: str) -> None:
    with pytest.raises(ModelError, match="no folder"):
        open_source(source)


def test_a_missing_gguf_file() -> None:
    with pytest.raises(ModelError, match="GGUF"):
        open_source("nowhere.gguf")


def test_a_hub_id_that_cannot_be_reached() -> None:
    with pytest.raises(
        ModelError,
        match="no folder somebody/some-model, and as a hub id .* the hub cannot be reached: no connection",
    ):
        open_source("somebody/some-model")


def test_a_file_is_no_folder(copy_of_llama: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        open_source(str(copy_of_llama / "config.json"))


@pytest.mark.parametrize(
    ("missing", "complaint"), [("config.json", "no config.json"), ("model.safetensors", "no weights")]
)
def test_folders_with_parts_missing(copy_of_llama: Path, missing: str, complaint: str) -> None:
    (copy_of_llama / missing).unlink()
    with pytest.raises(ModelError, match=complaint):
        open_source(str(copy_of_llama))


def test_a_config_that_is_no_json(copy_of_llama: Path) -> None:
    (copy_of_llama / "config.json").write_text("{")
    with pytest.raises(ModelError, match="JSON"):
        open_source(str(copy_of_llama))


@pytest.mark.parametrize(
    "model",
    [
        BertForMaskedLM(
            BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50)
        ),
        LlamaForSequenceClassification(
            LlamaConfig(
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                vocab_size=50,
            )
        ),
    ],
    ids=lambda model: type(model).__name__,
)
def test_other_kinds_of_models(model, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"no causal language model .{type(model).__name__}"):
        open_source(str(tmp_path))


def test_an_unknown_model_type(copy_of_llama: Path) -> None:
    config = json.loads((copy_of_llama / "config.json").read_text())
    (copy_of_llama / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of"}))
    with pytest.raises(ModelError, match="unheard-of"):
        open_source(str(copy_of_llama))


def test_pickles_are_refused_unless_asked_for(copy_of_llama: Path) -> None:
    weights = load_file(copy_of_llama / "model.safetensors")
    (copy_of_llama / "model.safetensors").unlink()
    torch.save(weights, copy_of_llama / "pytorch_model.bin")
    with pytest.raises(ModelError, match="--allow-pickle"):
        open_source(str(copy_of_llama))
    opened = open_source(str(copy_of_llama), allow_pickle=True)
    assert torch.equal(opened.model.lm_head.weight, weights["lm_head.weight"])


def test_code_of_the_model_is_not_run_unless_trusted(copy_of_llama: Path) -> None:
    config = json.loads((copy_of_llama / "config.json").read_text())
    config |= {
        "model_type": "own_llama",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"},
        "architectures": ["OwnForCausalLM"],
    }
    (copy_of_llama / "config.json").write_text(json.dumps(config))
    (copy_of_llama / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own_llama'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    with pytest.raises(ModelError, match="--trust-remote-code"):
        open_source(str(copy_of_llama))
    opened = open_source(str(copy_of_llama), trust_remote_code=True)
    assert type(opened.model).__name__ == "OwnForCausalLM"


@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_truncated_weights(copy_of_llama: Path, kept: float) -> None:
    file = copy_of_llama / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(ModelError, match="cannot be read"):
        open_source(str(copy_of_llama))


def test_a_tensor_that_is_missing(copy_of_llama: Path) -> None:
    weights = load_file(copy_of_llama / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy_of_llama / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 tensors are missing .*model\.layers\.1\.mlp\.up_proj\.weight"):
        open_source(str(copy_of_llama))


def test_a_tensor_of_the_wrong_shape(copy_of_llama: Path) -> None:
    weights = load_file(copy_of_llama / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(7)
    save_file(weights, copy_of_llama / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="cannot be read"):
        open_source(str(copy_of_llama))


@pytest.fixture
def gguf_file(llama: Path, tmp_path: Path) -> Path:
    """The trained Llama as a GGUF file in fp32, written with the gguf library."""
    import gguf

    model = AutoModelForCausalLM.from_pretrained(llama)
    tokenizer = json.loads((llama / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    config = model.config
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(sorted(tokenizer["vocab"], key=tokenizer["vocab"].get))
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if "q_proj" in name or "k_proj" in name:  # GGUF interleaves the two rotary halves
            heads = tensor.shape[0] // (config.hidden_size // config.num_attention_heads)
            tensor = tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@torch.no_grad()
def test_a_gguf_file_opens_as_an_ordinary_model(gguf_file: Path, llama: Path, tmp_path: Path) -> None:
    opened = open_source(str(gguf_file))
    ids = torch.randint(1, 1000, (1, 20), generator=torch.Generator().manual_seed(0))
    wanted = AutoModelForCausalLM.from_pretrained(llama)(input_ids=ids).logits
    assert torch.allclose(opened.model(input_ids=ids).logits, wanted, atol=1e-4)
    assert opened.tokenizer is not None
    opened.model.save_pretrained(tmp_path / "saved")  # transformers refuses that for a model from a GGUF
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.allclose(reloaded(input_ids=ids).logits, wanted, atol=1e-4)


def test_a_damaged_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(50))
    with pytest.raises(ModelError, match=r"bad\.gguf"):
        open_source(str(tmp_path / "bad.gguf"))


def test_absolute_and_climbing_paths_are_refused_before_anything_is_read(tmp_path: Path, monkeypatch) -> None:
    """Neither the file outside nor those inside."""
    opened: list[str] = []
    monkeypatch.setattr("roundel.model.checkpoint.read_header", lambda path: opened.append(str(path)) or {})
    for number, place in enumerate(["/etc/passwd", "a/../../x", "C:\\x", "\\\\host\\x", "..", "."]):
        model = Box(tmp_path / str(number)).index(lambda places, place=place: places.update({UP: place}))
        with pytest.raises(ModelError, match="inside the folder"):
            open_source(str(model))
    assert opened == []
