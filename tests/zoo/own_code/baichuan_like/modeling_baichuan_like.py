"""A decoder with Baichuan's module names: query, key and value in one Linear, `W_pack`."""

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_baichuan_like import BaichuanLikeConfig


class BaichuanLikeRMSNorm(nn.Module):
    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        wide = hidden_states.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return self.weight * normed.to(hidden_states.dtype)


class BaichuanLikeMLP(nn.Module):
    def __init__(self, config: BaichuanLikeConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(silu(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


class BaichuanLikeAttention(nn.Module):
    def __init__(self, config: BaichuanLikeConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.rope_theta = config.rope_theta
        self.W_pack = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        past_key_values: Cache | None,
    ) -> torch.Tensor:
        packed = self.W_pack(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        query, key = self.rotate(query, position_ids), self.rotate(key, position_ids)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        causal = attention_mask is None and query.shape[2] > 1
        mixed = scaled_dot_product_attention(query, key, value, attention_mask, is_causal=causal)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))

    def rotate(self, states: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Turn `[batch, head, token, dim]` by its positions; pairs are half a head apart."""
        steps = torch.arange(0, self.head_dim, 2, device=states.device).float() / self.head_dim
        angles = position_ids[:, None, :, None].float() * self.rope_theta**-steps
        cos, sin = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
        first, second = states.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class BaichuanLikeDecoderLayer(nn.Module):
    def __init__(self, config: BaichuanLikeConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = BaichuanLikeAttention(config, layer_idx)
        self.mlp = BaichuanLikeMLP(config)
        self.input_layernorm = BaichuanLikeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = BaichuanLikeRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        normed = self.input_layernorm(hidden_states)
        hidden_states = hidden_states + self.self_attn(normed, attention_mask, position_ids, past_key_values)
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class BaichuanLikePreTrainedModel(PreTrainedModel):
    config_class = BaichuanLikeConfig
    base_model_prefix = "model"
    _no_split_modules = ("BaichuanLikeDecoderLayer",)
    _supports_sdpa = True


class BaichuanLikeModel(BaichuanLikePreTrainedModel):
    def __init__(self, config: BaichuanLikeConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        layers = (BaichuanLikeDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.layers = nn.ModuleList(layers)
        self.norm = BaichuanLikeRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
    ) -> BaseModelOutputWithPast:
        hidden_states = self.embed_tokens(input_ids)
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
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
            )
        return BaseModelOutputWithPast(self.norm(hidden_states), past_key_values)


class BaichuanLikeForCausalLM(BaichuanLikePreTrainedModel, GenerationMixin):
    def __init__(self, config: BaichuanLikeConfig) -> None:
        super().__init__(config)
        self.model = BaichuanLikeModel(config)
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
        outputs = self.model(input_ids, attention_mask, position_ids, past_key_values, use_cache)
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss, logits, outputs.past_key_values)
