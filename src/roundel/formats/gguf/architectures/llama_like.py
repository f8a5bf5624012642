"""Llama and what is built like it: rotary embeddings on halves of heads, RMS norms, gated MLPs."""

from roundel.formats.gguf.architectures.architecture import SILU, Architecture, Need, one_of
from roundel.formats.gguf.keys import Key, always, head_width, rotary_width, setting, slides
from roundel.formats.gguf.layout import Place
from roundel.formats.gguf.rope_factors import attention_factor, check_width, llama3_factors, long_factors
from roundel.formats.gguf.rows import between, in_pairs
from roundel.formats.gguf.rules import Named, Rule, pairs

IN_PAIRS = (
    Rule(r"\.q_proj\.(weight|bias)$", pairs("num_attention_heads")),
    Rule(r"\.k_proj\.(weight|bias)$", pairs("num_key_value_heads")),
)
_VOCABULARY = Key("vocab_size", setting("vocab_size"))
_ROTARY = Key("rope_dimension_count", rotary_width)
_GRANITE = (
    _VOCABULARY,
    _ROTARY,
    Key("key_length", always(None)),
    Key("value_length", always(None)),
    Key("attention_scale", setting("attention_multiplier")),
    Key("embedding_scale", setting("embedding_multiplier")),
    Key("residual_scale", setting("residual_multiplier")),
    Key("logit_scale", setting("logits_scaling")),
)


def _packed(tensor: Named) -> list[Place]:
    """Queries, keys and values one after the other, in three tensors; the first two in pairs."""
    rows = tensor.shape[0] // 3
    turned = in_pairs(rows, tensor.config.num_attention_heads)
    orders = {"q": turned, "k": rows + turned, "v": between(2 * rows, 3 * rows)}
    return [Place(f"blk.{tensor.block}.attn_{kind}.weight", order) for kind, order in orders.items()]


_WITH_LLAMA3 = ("default", "linear", "yarn", "llama3")
_ALL_ROTARY = Need(
    lambda config: rotary_width(config) == head_width(config), "a rotary embedding of whole heads"
)

LLAMA_LIKE = (
    Architecture(
        "llama",
        ("llama", "mistral", "mixtral"),
        IN_PAIRS,
        (_VOCABULARY, _ROTARY),
        (SILU, _ALL_ROTARY),
        added=llama3_factors,
        scalings=_WITH_LLAMA3,
    ),
    Architecture(
        "smollm3",
        ("smollm3",),
        IN_PAIRS,
        (_VOCABULARY, _ROTARY),
        (
            SILU,
            Need(
                lambda config: (
                    list(config.no_rope_layers)
                    == [int((n + 1) % 4 != 0) for n in range(config.num_hidden_layers)]
                ),
                "a rotary embedding in all blocks but every fourth",
            ),
        ),
        added=llama3_factors,
        scalings=_WITH_LLAMA3,
    ),
    Architecture(
        "arcee",
        ("arcee",),
        IN_PAIRS,
        (_VOCABULARY, _ROTARY),
        (one_of("hidden_act", "relu2"),),
        added=llama3_factors,
        scalings=_WITH_LLAMA3,
    ),
    Architecture("granite", ("granite",), IN_PAIRS, _GRANITE, (SILU,)),
    Architecture(
        "baichuan",
        ("baichuan",),
        (Rule(r"\.W_pack\.weight$", _packed),),
        (Key("tensor_data_layout", always("Meta AI original pth")), _ROTARY),
        (SILU,),
    ),
    Architecture(
        "phi3",
        ("phi3",),
        keys=(
            _ROTARY,
            Key("sliding_window", lambda config: config.sliding_window or 0),
            Key("rope_scaling_orig_ctx_len", setting("original_max_position_embeddings")),
            Key("rope_scaling_attn_factors", attention_factor),
        ),
        needs=(SILU, Need(check_width, "a factor of LongRoPE for each pair of a head")),
        added=long_factors,
        scalings=("default", "longrope"),
    ),
    Architecture(
        "olmo",
        ("olmo",),
        IN_PAIRS,
        (Key("layer_norm_eps", always(1e-5)), Key("clamp_kqv", setting("clip_qkv"))),
        (SILU,),
    ),
    Architecture(
        "olmo2",
        ("olmo2", "olmo3"),
        keys=(
            Key("sliding_window", setting("sliding_window")),
            Key(
                "sliding_window_pattern",
                lambda config: slides(config) if config.model_type == "olmo3" else None,
            ),
        ),
        needs=(SILU,),
    ),
    Architecture("seed_oss", ("seed_oss",), needs=(SILU,)),
    Architecture(
        "exaone4",
        ("exaone4",),
        keys=(
            _VOCABULARY,
            Key("sliding_window", setting("sliding_window")),
            Key("sliding_window_pattern", slides),
        ),
        needs=(SILU,),
        added=llama3_factors,
        scalings=_WITH_LLAMA3,
    ),
    Architecture("ernie4_5", ("ernie4_5",), needs=(SILU,)),
)
