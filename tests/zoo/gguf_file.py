"""A Llama as a GGUF file, as a converter for llama.cpp writes it: other names, rows of q and k in pairs."""

import json
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType
from safetensors.torch import load_file

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(model: Path, path: Path) -> Path:
    """The folder of a Llama with a byte-level BPE tokenizer as one file in float32."""
    about = json.loads((model / "config.json").read_text(encoding="utf-8"))
    heads, groups = about["num_attention_heads"], about["num_key_value_heads"]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(about["max_position_embeddings"])
    writer.add_embedding_length(about["hidden_size"])
    writer.add_block_count(about["num_hidden_layers"])
    writer.add_feed_forward_length(about["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_vocab_size(about["vocab_size"])
    writer.add_layer_norm_rms_eps(about["rms_norm_eps"])
    writer.add_rope_freq_base((about.get("rope_parameters") or about)["rope_theta"])
    _add_tokenizer(writer, json.loads((model / "tokenizer.json").read_text(encoding="utf-8")), about)
    for name, tensor in load_file(model / "model.safetensors").items():
        array = tensor.float().numpy()
        if "q_proj" in name or "k_proj" in name:
            array = _in_pairs(array, heads if "q_proj" in name else groups)
        writer.add_tensor(_renamed(name), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _in_pairs(array: np.ndarray, heads: int) -> np.ndarray:
    """The two halves of each head's rows, one row of each in turn."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))


def _renamed(name: str) -> str:
    stem, part = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, number, rest = stem.split(".", 3)
        return f"blk.{number}.{_NAMES[rest]}.{part}"
    return f"{_NAMES[stem]}.{part}"


def _add_tokenizer(writer: GGUFWriter, about: dict, config: dict) -> None:
    vocabulary = {**about["model"]["vocab"], **{t["content"]: t["id"] for t in about["added_tokens"]}}
    special = {token["content"] for token in about["added_tokens"]}
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    tokens += [f"[unused{n}]" for n in range(config["vocab_size"] - len(tokens))]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in about["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    writer.add_token_merges(merges)
    for key, add in (("bos_token_id", writer.add_bos_token_id), ("eos_token_id", writer.add_eos_token_id)):
        if isinstance(config.get(key), int):
            add(config[key])
