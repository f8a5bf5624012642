"""A decoder with Qwen-1's module names: `transformer.h`, `attn.c_attn` with a bias, `mlp.w1`, `mlp.w2`."""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast


class Qwen1LikeConfig(PreTrainedConfig):
    model_type = "qwen1_like"
    keys_to_ignore_at_inference = ("past_key_values",)

    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016  # of `w1` and `w2` together
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    max_position_embeddings: int = 8192
    initializer_range: float = 0.02
    layer_norm_epsilon: float = 1e-6
    rotary_emb_base: float = 10000.0
    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        wide = hidden_states.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return normed.to(hidden_states.dtype) * self.weight


class RotaryEmbedding(nn.Module):
    """Cosines and sines by position, from frequencies in a buffer that no checkpoint holds."""

    def __init__(self, config: Qwen1LikeConfig) -> None:
        super().__init__()
        self.dim = config.hidden_size // config.num_attention_heads
        self.base = config.rotary_emb_base
        self.register_buffer("inv_freq", self.frequencies(), persistent=False)

    def frequencies(self) -> torch.Tensor:
        return self.base ** -(torch.arange(0, self.dim, 2).float() / self.dim)

    def forward(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[:, :, None, None].float() * self.inv_freq.float()
        return angles.cos(), angles.sin()


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn `[batch, token, head, dim]`; pairs are half a head apart."""
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(states.dtype)


class Qwen1LikeAttention(nn.Module):
    def __init__(self, config: Qwen1LikeConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.c_attn = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=True)
        self.c_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        rotary_pos_emb: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        layer_past: Cache | None,
    ) -> torch.Tensor:
        parts = self.c_attn(hidden_states).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)) for part in parts)
        query, key = rotate(query, *rotary_pos_emb), rotate(key, *rotary_pos_emb)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)
        causal = attention_mask is None and query.shape[2] > 1
        mixed = scaled_dot_product_attention(query, key, value, attention_mask, is_causal=causal)
        return self.c_proj(mixed.transpose(1, 2).flatten(2))


class Qwen1LikeMLP(nn.Module):
    def __init__(self, config: Qwen1LikeConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size // 2, bias=False)
        self.w2 = nn.Linear(config.hidden_size, config.intermediate_size // 2, bias=False)
        self.c_proj = nn.Linear(config.intermediate_size // 2, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.w1(hidden_states) * silu(self.w2(hidden_states)))


class Qwen1LikeBlock(nn.Module):
    def __init__(self, config: Qwen1LikeConfig, layer_idx: int) -> None:
        super().__init__()
        self.ln_1 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = Qwen1LikeAttention(config, layer_idx)
        self.ln_2 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = Qwen1LikeMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        rotary_pos_emb: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        layer_past: Cache | None = None,
    ) -> torch.Tensor:
        normed = self.ln_1(hidden_states)
        hidden_states = hidden_states + self.attn(normed, rotary_pos_emb, attention_mask, layer_past)
        return hidden_states + self.mlp(self.ln_2(hidden_states))


class Qwen1LikePreTrainedModel(PreTrainedModel):
    config_class = Qwen1LikeConfig
    base_model_prefix = "transformer"
    _no_split_modules = ("Qwen1LikeBlock",)
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RotaryEmbedding):
            init.copy_(module.inv_freq, module.frequencies())


class Qwen1LikeModel(Qwen1LikePreTrainedModel):
    def __init__(self, config: Qwen1LikeConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = RotaryEmbedding(config)
        self.h = nn.ModuleList(Qwen1LikeBlock(config, i) for i in range(config.num_hidden_layers))
        self.ln_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.wte

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.wte = value

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
    ) -> BaseModelOutputWithPast:
        hidden_states = self.wte(input_ids)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(past, past + input_ids.shape[1], device=input_ids.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        rotary_pos_emb = self.rotary_emb(position_ids)
        for block in self.h:
            hidden_states = block(hidden_states, rotary_pos_emb, mask, layer_past=past_key_values)
        return BaseModelOutputWithPast(self.ln_f(hidden_states), past_key_values)


class Qwen1LikeLMHeadModel(Qwen1LikePreTrainedModel, GenerationMixin):
    def __init__(self, config: Qwen1LikeConfig) -> None:
        super().__init__(config)
        self.transformer = Qwen1LikeModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        outputs = self.transformer(input_ids, attention_mask, position_ids, past_key_values, use_cache)
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss, logits, outputs.past_key_values)
