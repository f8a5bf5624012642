"""What a run sees of a quantized layer beside its error, for the report: its weight, its inputs, its outliers.

Heavy tails of the weight and single large input channels are why a layer rounds badly; where SpQR's outliers lie
(columns, rows, attention heads; its paper, arXiv 2306.03078, looks at them in the same way) shows what it made of them.
All are plain numbers and lists, so that they are the same after a way through JSON.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from roundel.grid.quantized_weight import QuantizedWeight

# Numbers of a weight at a time: on a CPU they stay in its cache, elsewhere each chunk is waited for.
_CHUNK, _CHUNK_ELSEWHERE = 65_536, 16_777_216
_FAR = 6.0
_TOP = 8
_MAP = (32, 48)
_HUNDREDTHS = 100
# q, k or v by itself: q_proj, query, v_lin.
_PART = re.compile(r"(q|k|v|query|key|value)(_[a-z]+)?$")


@dataclass(frozen=True)
class WeightDetails:
    """A weight before it was quantized (smoothed, where SmoothQuant reached it).

    Attributes:
        std: standard deviation of all its numbers.
        largest: max|w| / std; 0 where all numbers are the same.
        kurtosis: mean (w - mean)^4 / std^4, 3 for a normal distribution; 0 where all numbers are the same.
        beyond_6_std: share of the numbers that are farther than 6 std from the mean.
    """

    std: float
    largest: float
    kurtosis: float
    beyond_6_std: float


@dataclass(frozen=True)
class InputDetails:
    """The inputs of a layer on the calibration data: of each channel max|x|.

    Attributes:
        largest: of all channels.
        median: over the channels.
        top: `[channel, max|x|]` of the largest, in order.
    """

    largest: float
    median: float
    top: list[list[float]]


@dataclass(frozen=True)
class OutlierDetails:
    """Where the weights lie that are kept beside the grid.

    Attributes:
        count: how many.
        map: counts in a grid of at most 32 x 48 bins laid over the weight.
        shape: of the weight, `[out, in]`.
        top_columns: `[input channel, count]` of the fullest, in order.
        top_rows: `[row, count]`.
        heads: counts of the attention heads; None where the layer has none, or it is not clear which.
        in_top_columns: share of all outliers that is in the fullest hundredth of the columns (at least one).
        in_top_rows: the same of rows.
    """

    count: int
    map: list[list[int]]
    shape: list[int]
    top_columns: list[list[int]]
    top_rows: list[list[int]]
    heads: list[int] | None
    in_top_columns: float
    in_top_rows: float


@dataclass(frozen=True)
class LayerDetails:
    """Of one quantized layer.

    Attributes:
        weight: before it was quantized.
        inputs: None where no data passed it.
        outliers: None where the recipe keeps none.
    """

    weight: WeightDetails
    inputs: InputDetails | None
    outliers: OutlierDetails | None

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> "LayerDetails":
        """Back from what `asdict` made of it."""
        inputs, outliers = plain["inputs"], plain["outliers"]
        return cls(
            WeightDetails(**plain["weight"]),
            None if inputs is None else InputDetails(**inputs),
            None if outliers is None else OutlierDetails(**outliers),
        )


def weight_details(weight: torch.Tensor) -> WeightDetails:
    """Moments of `weight [out, in]` fp32, chunk by chunk: no copy of it is made."""
    size = _CHUNK if weight.device.type == "cpu" else _CHUNK_ELSEWHERE
    chunks = weight.split(max(1, size // weight.shape[1]))
    count = weight.numel()
    mean = sum(float(chunk.sum()) for chunk in chunks) / count
    extremes = [tuple(map(float, chunk.aminmax())) for chunk in chunks]
    low, high = min(low for low, _ in extremes), max(high for _, high in extremes)
    if low == high:
        return WeightDetails(0.0, 0.0, 0.0, 0.0)
    second = fourth = 0.0
    for chunk in chunks:
        squares = (chunk - mean).square_().flatten()
        second += float(squares.sum())
        fourth += float(squares.dot(squares))
    variance = second / count
    std = variance**0.5
    far = _FAR * std
    beyond = sum(
        int(((chunk - mean).abs_() > far).sum())
        for chunk, (lowest, highest) in zip(chunks, extremes, strict=True)
        if max(mean - lowest, highest - mean) > far
    )
    return WeightDetails(std, max(-low, high) / std, fourth / count / variance**2, beyond / count)


def input_details(largest: torch.Tensor) -> InputDetails:
    """Of `largest [in]`, max|x| of every input channel."""
    values, channels = largest.double().cpu().sort(descending=True, stable=True)
    top = zip(channels[:_TOP].tolist(), values[:_TOP].tolist(), strict=True)
    return InputDetails(float(values[0]), median(values.tolist()), [list(pair) for pair in top])


@dataclass(frozen=True)
class Heads:
    """Where the attention heads are in a weight `[out, in]`: each has so many neighbouring rows, or columns."""

    of_rows: bool
    width: int


def outlier_details(weight: QuantizedWeight, heads: Heads | None = None) -> OutlierDetails | None:
    """Where the outliers of a weight are."""
    outliers = weight.outliers
    if outliers is None:
        return None
    out, width = weight.shape
    rows = torch.arange(out, device=outliers.counts.device).repeat_interleave(outliers.counts.long())
    columns = outliers.columns.long()
    if weight.order is not None:
        columns = weight.order[columns]
    high, wide = min(_MAP[0], out), min(_MAP[1], width)
    bins = torch.bincount(rows * high // out * wide + columns * wide // width, minlength=high * wide)
    by_row, by_column = torch.bincount(rows, minlength=out), torch.bincount(columns, minlength=width)
    of_head = None
    if heads is not None:
        of_head = (by_row if heads.of_rows else by_column).view(-1, heads.width).sum(1).tolist()
    return OutlierDetails(
        count=outliers.count,
        map=bins.view(high, wide).tolist(),
        shape=[out, width],
        top_columns=_fullest(by_column),
        top_rows=_fullest(by_row),
        heads=of_head,
        in_top_columns=_share_of_fullest(by_column),
        in_top_rows=_share_of_fullest(by_row),
    )


def _fullest(counts: torch.Tensor) -> list[list[int]]:
    values, places = counts.sort(descending=True, stable=True)
    pairs = zip(places[:_TOP].tolist(), values[:_TOP].tolist(), strict=True)
    return [[place, count] for place, count in pairs if count]


def _share_of_fullest(counts: torch.Tensor) -> float:
    number = -(-len(counts) // _HUNDREDTHS)
    return int(counts.sort(descending=True).values[:number].sum()) / max(1, int(counts.sum()))


def attention_heads(shapes: Mapping[str, tuple[int, int]], config: Any) -> dict[str, Heads]:
    """Which Linears of a block have attention heads in their rows or columns.

    Those of an attention with its q, k and v apart, in their rows, and the one that reads the heads' outputs, in its
    columns; nothing where names and shapes leave a doubt (heads of several kinds, latent attention, gates).

    Args:
        shapes: `(out, in)` of the block's Linears by full name.
        config: of the model.
    """
    text: Any = config.get_text_config()
    heads, hidden = getattr(text, "num_attention_heads", None), getattr(text, "hidden_size", None)
    if not isinstance(heads, int) or not isinstance(hidden, int) or heads < 1:
        return {}
    width = getattr(text, "head_dim", None) or hidden // heads
    shared = getattr(text, "num_key_value_heads", None) or heads
    if not isinstance(width, int) or not isinstance(shared, int):
        return {}
    families: dict[str, list[str]] = defaultdict(list)
    for name in shapes:
        families[name.rpartition(".")[0]].append(name)
    found: dict[str, Heads] = {}
    for parent, members in families.items():
        rows = {name: shapes[name][0] for name in members}
        parts = {match[1][0]: name for name in members if (match := _PART.match(name.rpartition(".")[2]))}
        others = [name for name in members if name not in parts.values()]
        if len(members) - len(others) == 3 and parts.keys() == {"q", "k", "v"}:
            if [rows[parts[part]] for part in "qkv"] != [heads * width, shared * width, shared * width]:
                continue
            found |= {name: Heads(True, width) for name in parts.values()}
        elif len(members) == 2 and "att" in parent.rpartition(".")[2]:
            # q, k and v in one: whose rows belong to which head, every model decides for itself.
            others = [name for name in members if rows[name] != max(rows.values())]
            fused = max(rows.values()) - heads * width
            if fused <= 0 or fused % (2 * width) or fused > 2 * heads * width:
                continue
        else:
            continue
        readers = [name for name in others if shapes[name][1] == heads * width]
        if len(readers) == 1:
            found[readers[0]] = Heads(False, width)
    return found
