"""What each model is: one entry per architecture, and beside it the trait it is there for.

Widths are multiples of 32, so that every format's groups fit. No two numbers that code could take for each other
are equal: experts and the outputs of a Linear, the hidden width and twice the width of an expert.
"""

from typing import Any

from transformers import (
    BloomConfig,
    DeepseekV3Config,
    FalconConfig,
    Gemma3TextConfig,
    Glm4Config,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GptOssConfig,
    JambaConfig,
    Llama4TextConfig,
    LlamaConfig,
    Mamba2Config,
    MistralConfig,
    MixtralConfig,
    MptConfig,
    Olmo2Config,
    OlmoConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCABULARY = 1024
WIDTH = 96
LAYERS = 2
_IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_BASE = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, **_IDS}
# The usual initial weights are for widths in the thousands; wider ones learn sooner at this width.
_SOON = {**_BASE, "initializer_range": 0.05}
_SIX_HEADS = {**_SOON, "num_attention_heads": 6, "max_position_embeddings": 512}
_MODERN = {**_SIX_HEADS, "num_key_value_heads": 2, "intermediate_size": 256}
_FALCON = {**_SIX_HEADS, "ffn_hidden_size": 256}

CONFIGS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (
        LlamaConfig,
        {
            **_BASE,
            "intermediate_size": 256,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "tie_word_embeddings": False,
        },
    ),
    # Biases everywhere, positions learned with an offset.
    "opt": (
        OPTConfig,
        {
            **_BASE,
            "word_embed_proj_dim": WIDTH,
            "ffn_dim": 256,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "dropout": 0.0,
        },
    ),
    # ALiBi, query, key and value in one Linear.
    "bloom": (
        BloomConfig,
        {**_BASE, "num_attention_heads": 4},
    ),
    # Conv1D: weights stored [in, out].
    "gpt2": (
        GPT2Config,
        {**_BASE, "n_head": 4, "n_positions": 512, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    # OPT-350m: narrow embeddings, Linears outside the blocks (project_in, project_out), norms after the residual.
    "opt_projected": (
        OPTConfig,
        {
            **_BASE,
            "word_embed_proj_dim": 64,
            "do_layer_norm_before": False,
            "init_std": 0.1,
            "ffn_dim": 256,
            "num_attention_heads": 6,
            "max_position_embeddings": 512,
            "dropout": 0.0,
        },
    ),
    # Attention and MLP side by side behind one norm; rotary on half of each head; a bias in the head.
    "gptj": (
        GPTJConfig,
        {**_SIX_HEADS, "n_inner": 256, "rotary_dim": 8},
    ),
    # Falcon-7B: one key and one value for all heads in the fused Linear, attention and MLP side by side.
    "falcon_old": (
        FalconConfig,
        {**_FALCON, "multi_query": True, "parallel_attn": True},
    ),
    # Falcon-40B: grouped queries in the fused Linear, a norm each for attention and MLP.
    "falcon_new": (
        FalconConfig,
        {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    # Falcon-RW: ALiBi, biases, attention before MLP, all heads with keys of their own.
    "falcon_alibi": (
        FalconConfig,
        {**_FALCON, "alibi": True, "bias": True, "parallel_attn": False, "multi_query": False},
    ),
    # ALiBi handed to the blocks as a bias; no bias anywhere, not even in norms.
    "mpt": (
        MptConfig,
        {**_SOON, "n_heads": 6, "max_seq_len": 512},
    ),
    # Sees less than a test's window at once.
    "mistral": (
        MistralConfig,
        {**_MODERN, "sliding_window": 32},
    ),
    # Experts in one tensor [experts, out, in].
    "mixtral": (
        MixtralConfig,
        {**_MODERN, "intermediate_size": 64, "num_local_experts": 4, "router_aux_loss_coef": 0.02},
    ),
    # Blocks differ in what they see: all, the last 32 tokens, all.
    "gpt_neo": (
        GPTNeoConfig,
        {
            **_SIX_HEADS,
            "num_hidden_layers": 3,
            "attention_types": [[["global", "local"], 1], [["global"], 1]],
            "window_size": 32,
            "intermediate_size": 256,
        },
    ),
    # StableLM-alpha, Dolly, Pythia: side by side with two norms, heads interleaved in the fused Linear, `embed_out`.
    "gpt_neox": (
        GPTNeoXConfig,
        {**_SIX_HEADS, "intermediate_size": 256},
    ),
    # Biases in query, key and value only.
    "qwen2": (
        Qwen2Config,
        _MODERN,
    ),
    # Norms on queries and keys; attention wider than the hidden states.
    "qwen3": (
        Qwen3Config,
        {**_MODERN, "head_dim": 32},
    ),
    # A first block without experts; trained without balance, so that some experts see few tokens.
    "qwen3_moe": (
        Qwen3MoeConfig,
        {
            **_MODERN,
            "num_hidden_layers": 3,
            "head_dim": 16,
            "mlp_only_layers": [0],
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "norm_topk_prob": True,
        },
    ),
    # An expert for all tokens, behind a gate with one output.
    "qwen2_moe": (
        Qwen2MoeConfig,
        {
            **_MODERN,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 128,
            "router_aux_loss_coef": 0.02,
        },
    ),
    # Sliding and global blocks with rotary angles of their own, norms before and after, scaled tied embeddings.
    "gemma3": (
        Gemma3TextConfig,
        {
            **_MODERN,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "sliding_window": 32,
        },
    ),
    # Query, key and value in one Linear, gate and up in another.
    "phi3": (
        Phi3Config,
        _MODERN,
    ),
    # Norms before and after, gate and up in one Linear, rotary on half of each head.
    "glm4": (
        Glm4Config,
        {**_MODERN, "head_dim": 16},
    ),
    # Low-rank queries, keys and values; groups of experts chosen first; a first block without experts.
    "deepseek_v3": (
        DeepseekV3Config,
        {
            **_MODERN,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "q_lora_rank": 64,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 32,
            "v_head_dim": 16,
            "first_k_dense_replace": 1,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 1,
            "moe_intermediate_size": 64,
        },
    ),
    # Experts in tensors [experts, in, out] with biases, gate and up interleaved; attention sinks; every other block
    # slides.
    "gpt_oss": (
        GptOssConfig,
        {
            **_MODERN,
            "head_dim": 16,
            "intermediate_size": 64,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 32,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            },
            "router_aux_loss_coef": 0.02,
        },
    ),
    # One expert a token, and every expert's tensor multiplied with every token; attention in chunks but for the last
    # block, which has no positions either; a first block without experts.
    "llama4": (
        Llama4TextConfig,
        {
            **_MODERN,
            "num_hidden_layers": 3,
            "head_dim": 16,
            "intermediate_size": 64,
            "intermediate_size_mlp": 256,
            "num_local_experts": 4,
            "moe_layers": [1, 2],
            "no_rope_layer_interval": 3,
            "attention_chunk_size": 32,
        },
    ),
    # Norms without weights; queries, keys and values clipped.
    "olmo": (
        OlmoConfig,
        {**_MODERN, "clip_qkv": 8.0},
    ),
    # Norms after attention and MLP only: the Linears see the residual itself.
    "olmo2": (
        Olmo2Config,
        _MODERN,
    ),
    # No attention; one block is one mixer.
    "mamba2": (
        Mamba2Config,
        {**_SOON, "num_heads": 16, "head_dim": 12, "state_size": 8, "n_groups": 1, "chunk_size": 32},
    ),
    # State spaces, attention and experts in one stack.
    "jamba": (
        JambaConfig,
        {
            **_MODERN,
            "num_hidden_layers": 3,
            "intermediate_size": 128,
            "attn_layer_period": 3,
            "attn_layer_offset": 1,
            "expert_layer_period": 3,
            "expert_layer_offset": 2,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "mamba_dt_rank": 32,
            "router_aux_loss_coef": 0.02,
        },
    ),
}

# With modeling code of their own (own_code/), as models come that transformers does not know.
OWN_CODE = (
    # Query, key and value in one Linear, without biases (Baichuan).
    "baichuan_like",
    # Code in one file; a fused Linear with a bias before one without; rotary angles in a buffer (Qwen-1).
    "qwen1_like",
    # Hidden states [sequence, batch, width], blocks that return a tuple, shared keys in the fused Linear (ChatGLM).
    "chatglm_like",
)
