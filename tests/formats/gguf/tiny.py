"""A small model of random weights for each architecture that llama.cpp runs, and its tokenizer."""

from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from zoo.configs import CONFIGS as ZOO

_BASE = {
    "vocab_size": 1024,
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": [1.0 + 0.25 * n for n in range(8)],
    "short_factor": [1.0 + 0.05 * n for n in range(8)],
    "original_max_position_embeddings": 128,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}

# By what they are for; class name of the config, and what differs from the base.
_OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3": ("LlamaConfig", {"rope_parameters": _LLAMA3, "tie_word_embeddings": True}),
    "llama_biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "mixtral": ("MixtralConfig", {"intermediate_size": 64, "num_local_experts": 4}),
    "smollm3": ("SmolLM3Config", {"num_hidden_layers": 4}),
    "arcee": ("ArceeConfig", {}),
    "granite": (
        "GraniteConfig",
        {
            "attention_multiplier": 0.3,
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 4.0,
        },
    ),
    "qwen2_yarn": ("Qwen2Config", {"rope_parameters": _YARN}),
    "qwen2_moe": ("Qwen2MoeConfig", {**_MOE, "shared_expert_intermediate_size": 128}),
    "qwen3_moe": ("Qwen3MoeConfig", {**_MOE, "head_dim": 32, "norm_topk_prob": True}),
    "gemma": ("GemmaConfig", {"head_dim": 32}),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32, "num_hidden_layers": 3},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32, "num_hidden_layers": 7},
    ),
    "phi3_long": ("Phi3Config", {"rope_parameters": _LONG}),
    "phi2": ("PhiConfig", {"hidden_act": "gelu_new", "partial_rotary_factor": 0.5, "num_key_value_heads": 6}),
    "gpt2": (
        "GPT2Config",
        {
            "n_positions": 1024,
            "max_position_embeddings": None,
            "num_key_value_heads": None,
            "intermediate_size": None,
        },
    ),
    "gpt_neox_serial": ("GPTNeoXConfig", {"use_parallel_residual": False, "num_key_value_heads": None}),
    "starcoder": ("GPTBigCodeConfig", {}),
    "starcoder2": ("Starcoder2Config", {"tie_word_embeddings": True}),
    "stablelm": ("StableLmConfig", {"use_qkv_bias": True}),
    "stablelm_norms": ("StableLmConfig", {"qk_layernorm": True, "use_parallel_residual": True}),
    "nemotron": ("NemotronConfig", {}),
    "olmo3": ("Olmo3Config", {"num_hidden_layers": 4, "sliding_window": 32}),
    "olmoe": (
        "OlmoeConfig",
        {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64, "num_key_value_heads": 6},
    ),
    "seed_oss": ("SeedOssConfig", {"head_dim": 16}),
    "exaone4": ("Exaone4Config", {"sliding_window": None}),
    "ernie4_5": ("Ernie4_5Config", {"head_dim": 16}),
    "glm": ("GlmConfig", {"head_dim": 16, "rms_norm_eps": 1e-5}),
    "cohere": ("CohereConfig", {"logit_scale": 0.5}),
    "cohere2": ("Cohere2Config", {"logit_scale": 0.5, "num_hidden_layers": 4, "sliding_window": 32}),
    "mamba": ("MambaConfig", {"num_attention_heads": None, "intermediate_size": 192}),
    "lfm2": (
        "Lfm2Config",
        {
            "layer_types": ["conv", "full_attention", "conv"],
            "num_hidden_layers": 3,
            "block_auto_adjust_ff_dim": False,
        },
    ),
    "qwen3_5": (
        "Qwen3_5TextConfig",
        {
            "num_hidden_layers": 4,
            "head_dim": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "full_attention_interval": 4,
        },
    ),
    "minimax_m2": (
        "MiniMaxM2Config",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "head_dim": 32,
            "rotary_dim": 16,
            "intermediate_size": 64,
        },
    ),
}
_FROM_ZOO = (
    *(
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "phi3",
        "bloom",
        "falcon_old",
        "falcon_new",
        "mpt",
        "gpt_neox",
        "glm4",
    ),
    *("olmo", "olmo2", "gpt_oss"),
)
# Sizes that transformers does not look up in a file, but supposes.
_SUPPOSED: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 128},
    "qwen2_moe": {"moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632},
    "qwen3_moe": {"moe_intermediate_size": 768},
    "falcon_old": {"ffn_hidden_size": 384},
}
TINY = (*_FROM_ZOO, *_OWN)
# Those that transformers reads from a GGUF file, all tensors of them.
READ_BY_TRANSFORMERS = (
    *(
        "llama",
        "mistral",
        "llama3",
        "qwen2",
        "qwen3",
        "qwen2_moe",
        "qwen3_moe",
        "gemma2",
        "gemma3",
        "phi3",
        "gpt2",
    ),
    *("bloom", "falcon_old", "stablelm", "starcoder2", "nemotron", "mamba", "lfm2", "minimax_m2", "qwen3_5"),
)


def tiny_config(name: str, *, readable: bool = False) -> PreTrainedConfig:
    """The config of a model; `readable`: with the sizes that transformers supposes of every such file."""
    config_name, settings = ZOO[name] if name in _FROM_ZOO else _OWN[name]
    if name in _OWN:
        settings = {**_BASE, **settings}
    settings = {key: value for key, value in settings.items() if value is not None}
    settings |= _SUPPOSED.get(name, {}) if readable else {}
    return (getattr(transformers, config_name) if name in _OWN else config_name)(**settings)


def tiny_model(name: str, *, readable: bool = False) -> PreTrainedModel:
    """The model: no number in it is like another, norms and biases included."""
    generator = torch.Generator().manual_seed(5)
    model = AutoModelForCausalLM.from_config(tiny_config(name, readable=readable), dtype=torch.float32)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("A_log"):
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if (parameter.ndim == 1 and "norm" in key) or key.endswith(".D"):
                parameter.copy_(parameter + 0.1 * noise)
            else:
                parameter.copy_(noise * (0.1 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5))
    return model.eval()
