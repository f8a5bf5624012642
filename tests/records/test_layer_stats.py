"""Statistics of one layer, and the heads of an attention."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    FalconConfig,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
)

from roundel.grid.outliers import Outliers
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.methods.rtn import make_start
from roundel.records.layer_stats import (
    Heads,
    LayerDetails,
    attention_heads,
    input_details,
    outlier_details,
    weight_details,
)
from zoo import zoo_model


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (700, 300), (2, 200_000)])
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_moments_of_heavy_tails(shape: tuple[int, int], mean: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator) ** 3 * 0.01 + mean
    told = weight_details(weight)
    w = weight.double().numpy()
    if w.size == 1:
        assert told == type(told)(0.0, 0.0, 0.0, 0.0)
        return
    apart = (w - w.mean()) / w.std()
    assert told.std == pytest.approx(w.std(), rel=1e-4)
    assert told.largest == pytest.approx(np.abs(w).max() / w.std(), rel=1e-4)
    assert told.kurtosis == pytest.approx((apart**4).mean(), rel=1e-4)
    assert told.beyond_6_std == pytest.approx((np.abs(apart) > 6).mean(), abs=2 / w.size)
    assert (told.beyond_6_std > 0) == (w.size > 100)


def test_a_normal_weight_and_one_that_is_all_the_same() -> None:
    normal = weight_details(torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0)))
    assert normal.kurtosis == pytest.approx(3, abs=0.02)
    assert normal.std == pytest.approx(1, abs=0.01)
    assert normal.beyond_6_std == 0
    same = weight_details(torch.full((70, 3000), 0.1))
    assert asdict(same) == {"std": 0, "largest": 0, "kurtosis": 0, "beyond_6_std": 0}
    # A view of another layout, as GPT-2's Linears have it.
    weight = torch.randn(300, 700, generator=torch.Generator().manual_seed(0))
    assert asdict(weight_details(weight.t())) == pytest.approx(asdict(weight_details(weight)), rel=1e-5)


def test_the_largest_channels() -> None:
    sizes = torch.tensor([3.0, 9.0, 1.0, 9.0, 2.0, 0.5, 4.0, 5.0, 6.0, 7.0])
    told = input_details(sizes)
    assert told.largest == 9
    assert told.median == 4.5
    assert told.top[:3] == [[1, 9.0], [3, 9.0], [9, 7.0]]
    assert len(told.top) == 8
    assert input_details(torch.tensor([2.0])).top == [[0, 2.0]]


def quantized(
    shape: tuple[int, int], mask: torch.Tensor | None, order: torch.Tensor | None
) -> QuantizedWeight:
    weight, scheme = torch.randn(shape), Scheme(bits=3, group_size=-1, sym=False)
    plain = make_start(weight, scheme, "minmax", None).quantize(weight, scheme)
    outliers = None if mask is None else Outliers.where(mask, torch.ones(shape))
    return QuantizedWeight(plain.codes, plain.scale, plain.zero, scheme, outliers, order)


@pytest.mark.parametrize("shape", [(3, 5), (64, 96), (33, 49), (200, 500)])
def test_outliers_are_counted_where_they_lie(shape: tuple[int, int]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.05
    mask[1, :] = True
    mask[:, 3] = True
    order = torch.randperm(shape[1], generator=torch.Generator().manual_seed(1))
    told = outlier_details(quantized(shape, mask, order))
    assert told is not None
    lying = torch.empty_like(mask)
    lying[:, order] = mask
    assert told.count == int(mask.sum())
    assert sum(map(sum, told.map)) == told.count
    assert told.top_rows[0] == [1, shape[1]]
    assert told.top_columns[0] == [int(order[3]), shape[0]]
    if shape == (64, 96):
        assert told.map == lying.view(32, 2, 48, 2).sum((1, 3)).tolist()
    if shape == (3, 5):
        assert told.map == lying.int().tolist()
    fullest = lying.sum(0).sort(descending=True).values[: -(-shape[1] // 100)].sum()
    assert told.in_top_columns == int(fullest) / told.count


def test_no_outliers_and_none_kept() -> None:
    assert outlier_details(quantized((8, 16), None, None)) is None
    none = outlier_details(quantized((8, 16), torch.zeros(8, 16, dtype=torch.bool), None), Heads(True, 4))
    assert none is not None
    assert none.count == none.in_top_columns == none.in_top_rows == 0
    assert none.top_columns == none.top_rows == []
    assert none.heads == [0, 0]
    assert none.map == [[0] * 16] * 8


def test_the_same_after_a_way_through_json() -> None:
    mask = torch.rand(16, 32, generator=torch.Generator().manual_seed(0)) < 0.1
    details = LayerDetails(
        weight_details(torch.randn(16, 32)),
        input_details(torch.rand(32)),
        outlier_details(quantized((16, 32), mask, None), Heads(False, 8)),
    )
    for told in (details, LayerDetails(details.weight, None, None)):
        assert LayerDetails.read(json.loads(json.dumps(asdict(told)))) == told


def attention(**shapes: tuple[int, int]) -> dict[str, tuple[int, int]]:
    return {f"layers.0.attn.{name}": shape for name, shape in shapes.items()} | {
        "layers.0.mlp.up_proj": (256, 64),
        "layers.0.mlp.down_proj": (64, 256),
    }


ROWS, COLUMNS = Heads(True, 16), Heads(False, 16)
LLAMA = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("config", "shapes", "expected"),
    [
        (
            LlamaConfig(**LLAMA),
            attention(q_proj=(64, 64), k_proj=(32, 64), v_proj=(32, 64), o_proj=(64, 64)),
            {"q_proj": ROWS, "k_proj": ROWS, "v_proj": ROWS, "o_proj": COLUMNS},
        ),
        (
            LlamaConfig(**LLAMA, head_dim=32),
            attention(q_proj=(128, 64), k_proj=(64, 64), v_proj=(64, 64), o_proj=(64, 128)),
            {
                "q_proj": Heads(True, 32),
                "k_proj": Heads(True, 32),
                "v_proj": Heads(True, 32),
                "o_proj": Heads(False, 32),
            },
        ),
        (
            OPTConfig(hidden_size=64, num_attention_heads=4, word_embed_proj_dim=64),
            attention(k_proj=(64, 64), v_proj=(64, 64), q_proj=(64, 64), out_proj=(64, 64)),
            {"q_proj": ROWS, "k_proj": ROWS, "v_proj": ROWS, "out_proj": COLUMNS},
        ),
        (
            GPT2Config(n_embd=64, n_head=4),
            attention(c_attn=(192, 64), c_proj=(64, 64)),
            {"c_proj": COLUMNS},
        ),
        (
            Phi3Config(**LLAMA, pad_token_id=0),
            attention(qkv_proj=(128, 64), o_proj=(64, 64)),
            {"o_proj": COLUMNS},
        ),
        (  # one head of keys and values for all
            FalconConfig(hidden_size=64, num_attention_heads=4),
            attention(query_key_value=(96, 64), dense=(64, 64)),
            {"dense": COLUMNS},
        ),
        # q and a gate in one; a gate beside; latent attention; shapes of which the config does not speak
        (
            LlamaConfig(**LLAMA),
            attention(q_proj=(128, 64), k_proj=(32, 64), v_proj=(32, 64), o_proj=(64, 64)),
            {},
        ),
        (
            LlamaConfig(**LLAMA),
            attention(q_proj=(64, 64), k_proj=(32, 64), v_proj=(32, 64), g_proj=(64, 64), o_proj=(64, 64)),
            {"q_proj": ROWS, "k_proj": ROWS, "v_proj": ROWS},
        ),
        (
            DeepseekV3Config(hidden_size=64, num_attention_heads=4, num_key_value_heads=4),
            attention(q_a_proj=(48, 64), q_b_proj=(96, 48), kv_a_proj_with_mqa=(40, 64), o_proj=(64, 64)),
            {},
        ),
        (LlamaConfig(**LLAMA), {"layers.0.moe.gate_up": (128, 64), "layers.0.moe.down": (64, 64)}, {}),
    ],
)
def test_heads_are_found_by_names_and_shapes(config, shapes: dict, expected: dict) -> None:
    found = attention_heads(shapes, config)
    assert found == {f"layers.0.attn.{name}": heads for name, heads in expected.items()}


def test_a_model_without_attention_has_no_heads() -> None:
    for name in ("mamba2", "llama"):
        model = AutoModelForCausalLM.from_pretrained(zoo_model(name))
        linears = {
            n: tuple(m.weight.shape) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)
        }
        found = attention_heads(linears, model.config)
        assert len(found) == (8 if name == "llama" else 0)
