"""How survey.py makes a configuration small: sizes by the names of fields, and what single classes need besides.

Data only. A number of a configuration becomes the one given here if it is larger; what is not here stays as it is.
"""

from typing import Any

# A field that is left to the class.
UNSET = object()

LAYERS = 4
HEADS = 4
HEAD = 16
VOCABULARY = 128


def named(size: int, names: str) -> dict[str, int]:
    """The same size for several fields."""
    return dict.fromkeys(names.split(), size)


# Fields that count the layers; the first of them that a configuration has is the length of its lists.
LAYER_COUNTS = named(
    LAYERS,
    """num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers num_blocks encoder_layers
    num_encoder_layers num_layers_per_stack conf_num_hidden_layers""",
)

SIZES: dict[str, int] = {
    **LAYER_COUNTS,
    # Widths of hidden states.
    **named(
        64,
        """hidden_size n_embd d_model emb_dim embedding_dim embedding_size input_embedding_size output_embedding_size
        word_embed_proj_dim backbone_hidden_size attention_hidden_size lru_width input_size hidden_size_global
        pronunciation_embed_dim shape_embed_dim num_centroids
        out_hidden_size embed_dim text_hidden_size projector_hidden_size adapter_in_dim output_dim
        audio_hidden_size encoder_hidden_size cross_attention_hidden_size projection_dim""",
    ),
    **named(32, "hidden_size_per_layer_input ple_embed_dim"),
    # Inner widths of MLPs and of experts.
    **named(
        96,
        """intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim ffn_hidden_size d_inner dim_ff dff
        feed_forward_size intermediate_size_mlp dense_intermediate_size mlp_dim""",
    ),
    **named(
        48,
        """moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size
        shared_intermediate_size moe_shared_expert_intermediate_size expert_ffn_hidden_size router_hidden_size""",
    ),
    # Attention.
    **named(
        HEADS,
        """num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads encoder_attention_heads
        num_decoder_attention_heads num_encoder_attention_heads conf_num_attention_heads swa_num_attention_heads
        linear_num_heads linear_num_value_heads num_query_groups num_attention_heads_per_layer""",
    ),
    **named(2, "linear_num_key_heads index_n_heads o_groups"),
    **named(
        HEAD,
        """head_dim attention_head_size d_head dim_head v_head_dim qk_nope_head_dim qk_rope_head_dim swa_head_dim
        linear_head_dim linear_key_head_dim linear_value_head_dim index_head_dim kv_channels query_pre_attn_scalar""",
    ),
    **named(32, "attention_head_dim qk_head_dim rel_extent"),
    **named(8, "rotary_dim"),
    **named(
        16,
        """q_lora_rank kv_lora_rank o_lora_rank hc_lowrank adapter_rank laurel_rank mamba_dt_rank
        time_step_rank block_multiple_of""",
    ),
    # Experts.
    **named(8, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    **named(4, "zero_expert_num"),
    **named(2, "num_experts_per_tok num_experts_per_token moe_topk moe_k n_group num_expert_group"),
    **named(1, "topk_group n_shared_experts num_shared_experts first_k_dense_replace num_dense_layers"),
    "moe_layer_end_index": LAYERS - 1,
    # Recurrence.
    **named(8, "state_size mamba_d_state ssm_state_size mamba_num_heads mamba_n_heads"),
    **named(16, "mamba_headdim mamba_d_head mamba_head_dim"),
    **named(128, "mamba_d_ssm"),
    **named(2, "n_groups n_mamba_heads layer_group_size attn_layer_period"),
    **named(1, "attn_layer_offset"),
    # Vocabularies and lengths.
    **named(
        VOCABULARY,
        """vocab_size decoder_vocab_size vocab_size_per_layer_input unpadded_vocab_size pronunciation_vocab_size
        shape_vocab_size audio_vocab_size""",
    ),
    **named(256, "ngram_vocab_size_base"),
    **named(500, "encoder_hash_byte_group_vocab"),
    **named(
        128,
        """max_position_embeddings n_positions n_ctx max_seq_len max_target_positions max_source_positions
        context_length model_max_length original_max_position_embeddings""",
    ),
    **named(
        8,
        """sliding_window sliding_window_size attention_window_size attention_chunk_size window_size local_attention
        keep_window_size local_attention_window_len chunk_size mamba_chunk_size block_size index_topk prompt_length""",
    ),
    **named(4, "index_block_size"),
    **named(2, "index_topk_blocks altup_num_inputs num_kv_shared_layers"),
    **named(0, "num_nextn_predict_layers"),
}

# Token ids below the vocabulary; those of the inputs begin at 3.
SPECIAL_TOKENS = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "decoder_start_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
}

# Rotary embeddings of time, height and width, which these classes divide in code of their own where nothing is said.
_THREE_AXES = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}

# Fields by model type, and why the sizes above are not enough.
EXCEPTIONS: dict[str, dict[str, Any]] = {
    **{
        f"{name}_text": {"rope_parameters": _THREE_AXES}
        for name in ("qwen2_vl", "qwen2_5_vl", "qwen2_5_omni", "paddleocr_vl")
    },
    **{
        f"{name}_text": {"rope_parameters": {**_THREE_AXES, "partial_rotary_factor": 1.0}}
        for name in ("glm4v", "glm46v", "glm4v_moe", "glm_ocr")
    },
    # Which tokens stand for pieces of pictures.
    "chameleon": {"vocabulary_map": {"<image>": 8}},
    "emu3": {"vocabulary_map": {"<image>": 8}},
    # The layers of the default are all of one kind.
    "bamba": {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"]},
    # A setting for each kind of attention, which the class does not fill in.
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    # Numbers that the class leaves at None or, of experts, at 1 or at none.
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "xmod": {"default_language": "en_XX"},
    "qwen4_exp_text": {
        "eos_token_id": 2,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "ple_layer_ids": [1, 3],
        "ple_embed_dim": 64,
        "heads_per_ngram": 2,
        "number_of_conv_states": UNSET,
        "split_ngram_parts": 2,
        "make_ngram_vocab_size_divisible_by": 8,
    },
    # Sliding attention has sizes of its own, in the configurations of layers.
    "dots3_note_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 32,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 16,
        "num_key_value_heads": 4,
    },
    # Heads times their width must be the inner width.
    "falcon_h1": {"mamba_d_head": 16},
    "mamba2": {"head_dim": 32},
    # Layers that share keys and values want earlier ones of each kind.
    "gemma3n_text": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    # Sums and divisors of the hidden width and of the length; its hashes are random without a seed.
    "reformer": {
        "hash_seed": 0,
        "axial_pos_embds_dim": [16, 48],
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
    },
    # Two of the blocks that share their weights; attention is twice as wide as hidden states.
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "attention_hidden_size": 128},
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "hybrid_layer_ids": UNSET,
        "attention_hidden_size": UNSET,
        "n_mamba_heads": 8,
    },
}
