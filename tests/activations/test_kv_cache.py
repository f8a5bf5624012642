import gc
import weakref
from pathlib import Path

import pytest
import torch
from transformers import Cache, DynamicCache, StaticCache

from roundel.activations.attach import ActivationQuantizer
from roundel.activations.kv_cache import new_cache, quantizing
from roundel.activations.rounding import quantize_vectors
from roundel.activations.scheme import Activations, ActivationScheme

KV = ActivationScheme(bits=4, sym=False, static=False)


class ListCache(Cache):
    """An explicit cache: a Python list of rounded vectors for every layer, sequence and head."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.kept: dict[tuple[int, str, int, int], list[torch.Tensor]] = {}
        self.length = 0

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        answers = []
        for name, states in (("key", key_states), ("value", value_states)):
            sequences = []
            for i, sequence in enumerate(states):
                heads = []
                for h, head in enumerate(sequence):
                    kept = self.kept.setdefault((layer_idx, name, i, h), [])
                    kept.extend(quantize_vectors(token[None], KV)[0] for token in head)
                    heads.append(torch.stack(kept))
                sequences.append(torch.stack(heads))
            answers.append(torch.stack(sequences))
        self.length = answers[0].shape[2]
        return tuple(answers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length if (layer_idx, "key", 0, 0) in self.kept else 0

    def get_mask_sizes(self, query_length, layer_idx: int):
        return self.get_seq_length(layer_idx) + query_length, 0


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(1000, (2, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_one_pass_equals_decoding_with_an_explicit_cache(
    any_model: Path, ids: torch.Tensor, load_model
) -> None:
    model, _ = load_model(any_model)
    plain = model(input_ids=ids).logits
    past = ListCache()
    by_token = []
    for t in range(ids.shape[1]):
        length = past.get_seq_length()
        mask = torch.ones(2, length + 1, dtype=torch.long)
        step = model(input_ids=ids[:, t : t + 1], past_key_values=past, attention_mask=mask, use_cache=True)
        by_token.append(step.logits)
    quantizer = ActivationQuantizer(model, [], Activations(kv=KV))
    assert torch.equal(model(input_ids=ids).logits, plain)
    with quantizer.switched(on=True):
        found = model(input_ids=ids, use_cache=False).logits
    assert torch.allclose(found, torch.cat(by_token, 1), atol=2e-4)
    assert float((found - plain).abs().max()) > 0.01  # 4 bits are seen


@torch.no_grad()
def test_generation_fills_the_cache_with_rounded_vectors(llama: Path, ids: torch.Tensor, load_model) -> None:
    model, _ = load_model(llama)
    ActivationQuantizer(model, [], Activations(kv=KV)).enabled = True
    answer = model.generate(ids[:1], max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    layer = answer.past_key_values.layers[1]
    assert layer.keys.shape[2] == 12 + 5 - 1
    assert torch.equal(quantize_vectors(layer.keys, KV), layer.keys) or torch.allclose(
        quantize_vectors(layer.keys, KV), layer.keys, atol=1e-5
    )
    assert all(len(token.unique()) <= 16 for head in layer.values[0] for token in head)
    # Greedy continuation, token by token, is what whole passes say.
    for length in range(12, 17):
        whole = model(input_ids=answer.sequences[:, :length], use_cache=False).logits[0, -1]
        assert float(whole.max() - whole[answer.sequences[0, length]]) < 1e-3


def test_any_kind_of_cache_rounds_and_only_once(llama: Path, load_model) -> None:
    model, _ = load_model(llama)
    keys, values = torch.randn(1, 2, 5, 24), torch.randn(1, 2, 5, 24)
    wanted = quantize_vectors(keys, KV), quantize_vectors(values, KV)
    for cache in (DynamicCache(), new_cache(model.config)):
        past = quantizing(quantizing(cache, KV), KV)
        assert past is cache
        found = past.update(keys, values, 0)
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])
    static = quantizing(StaticCache(model.config, max_cache_len=8), KV)
    found, _ = static.update(keys, values, 0)
    assert torch.equal(found[:, :, :5], wanted[0])


def test_a_dropped_cache_is_freed_at_once(llama: Path, load_model) -> None:
    model, _ = load_model(llama)
    past = quantizing(new_cache(model.config), KV)
    keys, _ = past.update(torch.randn(1, 2, 5, 24), torch.randn(1, 2, 5, 24), 0)
    watch = weakref.ref(past)
    gc.disable()
    try:
        del past, keys
        assert watch() is None
    finally:
        gc.enable()
