"""Sizes of a model with Baichuan's module names."""

from transformers import PreTrainedConfig


class BaichuanLikeConfig(PreTrainedConfig):
    model_type = "baichuan_like"
    keys_to_ignore_at_inference = ("past_key_values",)

    vocab_size: int = 64000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    max_position_embeddings: int = 4096
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    pad_token_id: int | None = 0
