"""Sizes of a model with ChatGLM3's module names, under ChatGLM3's own keys."""

from transformers import PreTrainedConfig


class ChatGLMLikeConfig(PreTrainedConfig):
    model_type = "chatglm_like"
    keys_to_ignore_at_inference = ("past_key_values",)
    attribute_map = {  # noqa: RUF012
        "vocab_size": "padded_vocab_size",
        "num_hidden_layers": "num_layers",
        "max_position_embeddings": "seq_length",
        "num_key_value_heads": "multi_query_group_num",
    }

    padded_vocab_size: int = 65024
    hidden_size: int = 4096
    ffn_hidden_size: int = 13696
    num_layers: int = 28
    num_attention_heads: int = 32
    multi_query_group_num: int = 2
    seq_length: int = 8192
    initializer_range: float = 0.02
    layernorm_epsilon: float = 1e-5
    rope_theta: float = 10000.0
    pre_seq_len: int | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
