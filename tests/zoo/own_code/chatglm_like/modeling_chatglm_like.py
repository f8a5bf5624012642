"""A decoder with ChatGLM3's module names and its layout: inside the encoder, tokens come before rows."""

import torch
from torch import nn
from torch.nn.functional import silu
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_chatglm_like import ChatGLMLikeConfig


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        wide = hidden_states.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(hidden_states.dtype)


class PrefixEncoder(nn.Module):
    """Holds P-tuning's learned prefix; there only where `pre_seq_len` is set, which no test does."""

    def __init__(self, config: ChatGLMLikeConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.pre_seq_len, config.num_layers * config.hidden_size)


class Embedding(nn.Module):
    def __init__(self, config: ChatGLMLikeConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """`[token, batch, width]`."""
        return self.word_embeddings(input_ids).transpose(0, 1).contiguous()


def rotary_angles(position_ids: torch.Tensor, dim: int, theta: float) -> torch.Tensor:
    """Cosines and sines `[token, batch, dim / 2, 2]`."""
    frequencies = theta ** -(torch.arange(0, dim, 2, device=position_ids.device).float() / dim)
    angles = position_ids.t()[:, :, None].float() * frequencies
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def rotate(states: torch.Tensor, rotary_pos_emb: torch.Tensor) -> torch.Tensor:
    """Turn the first half of each head of `[token, batch, head, dim]`; pairs are neighbours."""
    turned, rest = states.chunk(2, dim=-1)
    even, odd = turned.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotary_pos_emb.to(states.dtype)[:, :, None].unbind(-1)
    pairs = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return torch.cat([pairs.flatten(-2), rest], dim=-1)


class SelfAttention(nn.Module):
    def __init__(self, config: ChatGLMLikeConfig, layer_number: int) -> None:
        super().__init__()
        self.layer_number = layer_number
        self.heads, self.groups = config.num_attention_heads, config.multi_query_group_num
        self.head_dim = config.hidden_size // self.heads
        packed = (self.heads + 2 * self.groups) * self.head_dim
        self.query_key_value = nn.Linear(config.hidden_size, packed, bias=True)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        rotary_pos_emb: torch.Tensor,
        kv_cache: Cache | None,
    ) -> torch.Tensor:
        packed = self.query_key_value(hidden_states).unflatten(-1, (-1, self.head_dim))
        query, key, value = packed.split([self.heads, self.groups, self.groups], dim=2)
        query, key = rotate(query, rotary_pos_emb), rotate(key, rotary_pos_emb)
        query, key, value = (states.permute(1, 2, 0, 3) for states in (query, key, value))
        if kv_cache is not None:
            key, value = kv_cache.update(key, value, self.layer_number)
        key, value = (states.repeat_interleave(self.heads // self.groups, dim=1) for states in (key, value))
        scores = query @ key.transpose(2, 3) / self.head_dim**0.5
        scores = scores.masked_fill(attention_mask, torch.finfo(scores.dtype).min)
        mixed = scores.softmax(-1) @ value
        return self.dense(mixed.permute(2, 0, 1, 3).flatten(2))


class MLP(nn.Module):
    def __init__(self, config: ChatGLMLikeConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.ffn_hidden_size, bias=False)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, up = self.dense_h_to_4h(hidden_states).chunk(2, dim=-1)
        return self.dense_4h_to_h(silu(gate) * up)


class GLMBlock(nn.Module):
    def __init__(self, config: ChatGLMLikeConfig, layer_number: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)
        self.self_attention = SelfAttention(config, layer_number)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        rotary_pos_emb: torch.Tensor,
        kv_cache: Cache | None = None,
    ) -> tuple[torch.Tensor, Cache | None]:
        normed = self.input_layernorm(hidden_states)
        hidden_states = hidden_states + self.self_attention(normed, attention_mask, rotary_pos_emb, kv_cache)
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states)), kv_cache


class GLMTransformer(nn.Module):
    def __init__(self, config: ChatGLMLikeConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GLMBlock(config, i) for i in range(config.num_layers))
        self.final_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        rotary_pos_emb: torch.Tensor,
        kv_cache: Cache | None,
    ) -> tuple[torch.Tensor, Cache | None]:
        for layer in self.layers:
            hidden_states, kv_cache = layer(hidden_states, attention_mask, rotary_pos_emb, kv_cache=kv_cache)
        return self.final_layernorm(hidden_states), kv_cache


class ChatGLMLikePreTrainedModel(PreTrainedModel):
    config_class = ChatGLMLikeConfig
    base_model_prefix = "transformer"
    _no_split_modules = ("GLMBlock",)


class ChatGLMLikeModel(ChatGLMLikePreTrainedModel):
    def __init__(self, config: ChatGLMLikeConfig) -> None:
        super().__init__(config)
        self.embedding = Embedding(config)
        self.encoder = GLMTransformer(config)
        self.output_layer = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        if config.pre_seq_len is not None:
            self.prefix_encoder = PrefixEncoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embedding.word_embeddings = value

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """`last_hidden_state` is `[token, batch, width]`."""
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        length = input_ids.shape[1]
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=input_ids.device)[None]
        masked = position_ids.new_ones(1, 1, length, past + length, dtype=torch.bool).triu(past + 1)
        if attention_mask is not None:
            masked = masked | ~attention_mask[:, None, None].bool()
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        rotary_pos_emb = rotary_angles(position_ids, head_dim // 2, self.config.rope_theta)
        hidden_states = self.embedding(input_ids)
        return BaseModelOutputWithPast(*self.encoder(hidden_states, masked, rotary_pos_emb, past_key_values))


class ChatGLMLikeForConditionalGeneration(ChatGLMLikePreTrainedModel, GenerationMixin):
    def __init__(self, config: ChatGLMLikeConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGLMLikeModel(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.transformer.output_layer

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.transformer.output_layer = new_embeddings

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
        logits = self.transformer.output_layer(outputs.last_hidden_state).transpose(0, 1).contiguous()
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss, logits, outputs.past_key_values)
