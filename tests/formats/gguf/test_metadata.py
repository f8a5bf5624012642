"""What a file says of its model, and which models no file can be of."""

import pytest
import torch
from transformers import (
    FalconConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OlmoeConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

from formats.gguf.tiny import TINY, tiny_config, tiny_model
from roundel.errors import FormatError
from roundel.formats.gguf.architectures import ARCHITECTURES, architecture_of
from roundel.formats.gguf.metadata import added_tensors, metadata_of
from zoo.training import train_tokenizer


def values(of: str, **options) -> dict:
    with torch.device("meta"):
        model = tiny_model(of)
    return {key: value for key, value, _ in metadata_of(model, train_tokenizer(), None, **options)}


def test_a_llama_says_what_it_is():
    found = values("llama3", name="Tiny")
    expected = {
        "general.architecture": "llama",
        "general.name": "Tiny",
        "llama.block_count": 2,
        "llama.context_length": 512,
        "llama.embedding_length": 96,
        "llama.feed_forward_length": 256,
        "llama.attention.head_count": 6,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 500000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "llama.vocab_size": 1024,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {key: found[key] for key in expected} == expected
    assert len(found["tokenizer.ggml.tokens"]) == len(found["tokenizer.ggml.token_type"]) == 1024


def test_experts_and_windows_are_counted():
    moe = values("qwen3_moe")
    assert (moe["qwen3moe.expert_count"], moe["qwen3moe.expert_used_count"]) == (4, 2)
    assert moe["qwen3moe.expert_feed_forward_length"] == 64
    assert values("gemma3")["gemma3.attention.sliding_window"] == 32
    assert values("qwen2_yarn")["qwen2.rope.scaling.factor"] == 4.0


@pytest.mark.parametrize("name", TINY)
def test_every_architecture_is_known_by_its_config(name):
    known = architecture_of(tiny_config(name))
    assert known is ARCHITECTURES[known.name]


def test_llama3_has_a_table_of_factors():
    table = added_tensors(tiny_config("llama3"))["rope_freqs.weight"]
    # https://github.com/meta-llama/llama-models: high frequencies stay, low ones are divided, with a ramp in between.
    waves = [2 * torch.pi * 500000.0 ** (n / 8) for n in range(8)]
    for wave, factor in zip(waves, table.tolist(), strict=True):
        ramp = min(max((64 / wave - 1.0) / 3.0, 0.0), 1.0)
        assert factor == pytest.approx(1 / (ramp + (1 - ramp) / 8.0), rel=1e-5)
    assert added_tensors(tiny_config("llama")) == {}


REFUSED = [
    (OPTConfig(), "a model of the type opt has no GGUF file .*--like base.gguf"),
    (LlamaConfig(hidden_act="gelu"), "llama .*hidden_act silu or swish is expected"),
    (GPT2Config(activation_function="relu"), "gpt2 .*activation_function gelu_new"),
    (FalconConfig(alibi=True), "falcon .*alibi False"),
    (Qwen3MoeConfig(norm_topk_prob=False), "qwen3moe .*norm_topk_prob True"),
    (OlmoeConfig(num_key_value_heads=2), "olmoe .*as many heads of keys"),
    (
        Qwen2Config(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        "a rotary embedding of the type default or linear or yarn, not dynamic",
    ),
    (MistralConfig(hidden_act="relu"), "llama .*hidden_act"),
]


@pytest.mark.parametrize(("config", "words"), REFUSED, ids=[type(config).__name__ for config, _ in REFUSED])
def test_what_llama_cpp_does_not_compute_is_refused(config, words):
    with pytest.raises(FormatError, match=words):
        architecture_of(config)


def test_a_model_without_a_tokenizer_is_refused():
    with torch.device("meta"):
        model = tiny_model("llama")
    with pytest.raises(FormatError, match="no tokenizer.*--like base.gguf"):
        metadata_of(model, None, None)
