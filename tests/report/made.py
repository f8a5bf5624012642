"""Reports as runs leave them, made from a seed: any number of blocks, any method, with experts or without.

The records are the engine's own classes, so that a field that changes there changes here.
"""

import math
import random
from dataclasses import asdict
from typing import Any

import torch

from roundel.recipe import Recipe
from roundel.records.outcome import BlockRecord, LayerRecord, Outcome

Report = dict[str, Any]
_WIDTH, _INNER = 96, 256
_KINDS = {
    "self_attn.q_proj": (_WIDTH, _WIDTH),
    "self_attn.k_proj": (_WIDTH // 2, _WIDTH),
    "self_attn.v_proj": (_WIDTH // 2, _WIDTH),
    "self_attn.o_proj": (_WIDTH, _WIDTH),
    "mlp.gate_proj": (_INNER, _WIDTH),
    "mlp.up_proj": (_INNER, _WIDTH),
    "mlp.down_proj": (_WIDTH, _INNER),
}


def made_report(
    blocks: int = 2,
    *,
    method: str = "autoround",
    experts: int = 0,
    iters: int = 40,
    source: str = "models/made",
    seed: int = 0,
    broken: bool = True,
) -> Report:
    """A report with everything in it; `down_proj` of the middle block may be broken, and is said to be out of line."""
    manifest = made_manifest(blocks, method=method, experts=experts, iters=iters, source=source, seed=seed)
    standouts = [_break(manifest, blocks // 2)] if broken else []
    return {
        "manifest": manifest,
        "details": made_details(manifest, seed=seed),
        "quality": made_quality(seed=seed),
        "standouts": standouts,
    }


def _break(manifest: Report, block: int) -> Report:
    worst = next(
        layer
        for layer in manifest["layers"]
        if layer["block"] == block and layer["name"].endswith("down_proj")
    )
    usual = worst["error"]
    worst["error"] *= 40
    return {
        "name": worst["name"],
        "error": worst["error"],
        "median": usual,
        "words": f"{worst['name']}: error {worst['error']:.2g}, 40 times that of its like",
    }


def made_manifest(
    blocks: int,
    *,
    method: str = "autoround",
    experts: int = 0,
    iters: int = 40,
    source: str = "models/made",
    seed: int = 0,
) -> Report:
    """A manifest as `build_manifest` and a written folder fill it."""
    random_ = random.Random(seed)
    recipe = Recipe(name="made", method=method, bits=3 if method == "spqr" else 4)
    recipe_data = recipe.model_dump(mode="json")
    tuned = method in ("autoround", "signround", "flexround", "lrq")
    records = [_block(i, random_, iters, tuned) for i in range(blocks)]
    layers = [layer for i in range(blocks) for layer in _layers(i, random_, recipe, experts)]
    layers += [
        LayerRecord(
            "lm_head", "Linear", (1024, _WIDTH), None, reason="output head; lm_head=true quantizes it"
        ),
        LayerRecord("model.embed_tokens", "Embedding", (1024, _WIDTH), None, reason="embedding"),
    ]
    outcome = Outcome(records, layers)
    parameters = sum(math.prod(layer.shape) for layer in layers) + 2 * blocks * _WIDTH
    stored = sum((layer.bits_per_weight or 16) * math.prod(layer.shape) / 8 for layer in layers)
    file_bytes = int(stored) + 4 * blocks * _WIDTH + 2000
    return {
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"roundel": "0.1.0", "torch": "2.9.0", "python": "3.11.7"},
        "source": source,
        "original": {
            "fingerprint": "01abf517a14bf92eab04c16b998a9cac",
            "bytes": 2 * parameters,
            "bits_per_weight": 16,
            "parameters": parameters,
        },
        "calibration": {
            "source": "text sampled from the model itself",
            "samples": 32,
            "tokens_per_sample": 256,
        }
        if recipe.needs_calibration
        else None,
        "recipe": recipe_data,
        "device": "cpu",
        "amp": "bfloat16",
        "threads": 1,
        "ranks": 1,
        "bits_per_weight": outcome.bits_per_weight(),
        "paper_bits": outcome.paper_bits(),
        "outlier_share": outcome.outlier_share(),
        "trained_share": outcome.trained_share(),
        "seconds": 12.0 * blocks,
        "peak_memory_bytes": 1_245_376_512,
        "blocks": [
            {**asdict(record), "peak_bytes": 400_000_000 + 5_000_000 * i} for i, record in enumerate(records)
        ],
        "layers": [{**asdict(layer), "shape": list(layer.shape)} for layer in layers],
        "plan": {"peak_bytes": 1_200_000_000, "memory": {"codes": 1}, "disk_bytes": 2},
        "file_bytes": file_bytes,
        "bits_per_parameter": 8 * file_bytes / parameters,
    }


def _block(index: int, random_: random.Random, iters: int, tuned: bool) -> BlockRecord:
    start = 2e-3 * 1.15**index * random_.uniform(0.8, 1.25)
    record = BlockRecord(f"model.layers.{index}", seconds=random_.uniform(3, 4) + (2 if index == 0 else 0))
    if tuned:
        gain = random_.uniform(0.3, 0.6)
        record.loss_start, record.loss_end, record.kept = start, start * (1 - gain), str(iters)
        record.trained = 1000
        record.curve = [
            start * (1 - gain * (1 - math.exp(-4 * i / iters))) * random_.uniform(0.85, 1.18)
            for i in range(iters)
        ]
    return record


def _layers(index: int, random_: random.Random, recipe: Recipe, experts: int) -> list[LayerRecord]:
    kinds = dict(_KINDS)
    if experts:
        mlp = {kind: kinds.pop(kind) for kind in list(kinds) if kind.startswith("mlp.")}
        for expert in range(experts):
            kinds |= {kind.replace("mlp.", f"mlp.experts.{expert}."): shape for kind, shape in mlp.items()}
    layers = []
    for place, (kind, shape) in enumerate(kinds.items()):
        scheme = recipe.scheme_for(kind, torch.float16)
        assert scheme is not None
        share = random_.uniform(0.002, 0.01) if recipe.method == "spqr" else 0.0
        base = {2: 9e-2, 3: 2.5e-2, 4: 6e-3}.get(scheme.bits, 1e-4)
        layers.append(
            LayerRecord(
                f"model.layers.{index}.{kind}", "Linear", shape, index,
                tokens=8192, bits=scheme.bits, group_size=scheme.group_size, sym=scheme.sym,
                bits_per_weight=scheme.stored_bits(*shape) / math.prod(shape) + 33 * share,
                paper_bits=scheme.paper_bits(shape[1]) + 32 * share,
                outliers=share,
                error=base * (1 + 0.12 * (place % 7)) * 1.01**index * random_.uniform(0.85, 1.2),
            )
        )  # fmt: skip
    return layers


def made_details(manifest: Report, seed: int = 0) -> Report:
    """Statistics of every quantized layer; outliers where the manifest has some."""
    random_ = random.Random(seed + 1)
    return {
        layer["name"]: {
            "weight": {
                "std": random_.uniform(0.02, 0.06),
                "largest": random_.uniform(5, 9) * (4 if "down" in layer["name"] else 1),
                "kurtosis": random_.uniform(3, 6) * (3 if "o_proj" in layer["name"] else 1),
                "beyond_6_std": random_.uniform(0, 2e-4),
            },
            "inputs": _inputs(layer, random_) if manifest["calibration"] else None,
            "outliers": _outliers(layer, random_) if layer["outliers"] else None,
        }
        for layer in manifest["layers"]
        if layer["bits"] is not None
    }


def _inputs(layer: Report, random_: random.Random) -> Report:
    width = layer["shape"][1]
    peaks = {7: 60.0, 41: 33.0} if width == _WIDTH else {}
    top = [[channel, peak * random_.uniform(0.7, 1.3)] for channel, peak in peaks.items()]
    top += [[channel, random_.uniform(3, 6)] for channel in random_.sample(range(width), 8 - len(top))]
    top.sort(key=lambda pair: -pair[1])
    return {"largest": top[0][1], "median": random_.uniform(0.8, 2.0), "top": top}


def _outliers(layer: Report, random_: random.Random) -> Report:
    out, width = layer["shape"]
    rows, columns = min(32, out), min(48, width)
    map_ = [[0] * columns for _ in range(rows)]
    crowded = random_.sample(range(columns), 3)
    amount = max(1, int(layer["outliers"] * out * width))
    for _ in range(amount):
        column = random_.choice(crowded) if random_.random() < 0.6 else random_.randrange(columns)
        map_[random_.randrange(rows)][column] += 1
    heads = [0] * 4
    for row, counts in enumerate(map_):
        heads[row * 4 // rows] += sum(counts)
    attention = "self_attn" in layer["name"]
    return {
        "count": amount,
        "map": map_,
        "shape": [out, width],
        "top_columns": [[c * width // columns, sum(row[c] for row in map_)] for c in crowded],
        "top_rows": [
            [r * out // rows, sum(map_[r])] for r in sorted(range(rows), key=lambda r: -sum(map_[r]))[:8]
        ],
        "heads": heads if attention else None,
        "in_top_columns": 0.62,
        "in_top_rows": 0.05,
    }


def around(value: float, share: float = 0.04) -> dict[str, float]:
    """An interval about a value."""
    return {"value": value, "low": value * (1 - share), "high": value * (1 + share)}


def made_quality(kl: float = 0.0132, seed: int = 0) -> Report:
    """Two texts and two tasks against the original."""
    random_ = random.Random(seed + 2)
    texts = []
    for text, perplexity, words in (
        ("wikitext2", 18.43, "raw test split joined by blank lines, windows of 2048 without overlap"),
        ("pydoc", 9.21, "The Python reference manual, windows of 512"),
    ):
        ratio = 1 + 0.9 * kl * random_.uniform(0.8, 1.2)
        texts.append(
            {
                "text": text,
                "convention": words,
                "windows": 141,
                "tokens": 288_768,
                "perplexity": around(perplexity * ratio),
                "reference_perplexity": around(perplexity),
                "perplexity_ratio": around(ratio, 0.15 * kl),
                "kl": {"mean": around(kl), "median": kl / 3, "p99": kl * 11, "max": kl * 160},
                "top1": around(max(0.2, 0.97 - kl), 0.003),
            }
        )
    tasks = [
        {
            "task": task, "metric": metric, "value": value - kl / 2, "stderr": 0.0204, "documents": 500, "fewshot": 0,
            "reference": {"value": value, "stderr": 0.0203}, "flips": {"share": 0.05, "lost": 14, "won": 11},
        }
        for task, metric, value in (("piqa", "acc_norm", 0.684), ("arc_easy", "acc", 0.561))
    ]  # fmt: skip
    return {"texts": texts, "tasks": tasks}


def made_comparison(
    names: tuple[str, ...] = ("rtn-w4", "autoround-w4", "spqr-4.25", "autoround-w3", "rtn-w3"),
    blocks: int = 6,
) -> Report:
    """Models of falling quality; the first two cannot be told apart on the first text."""
    original = made_report(blocks, method="rtn")["manifest"]["original"]
    models = []
    for i, name in enumerate(names):
        kl = 0.0075 * 1.9 ** (0.5 * i * (i - 1) if i else 0)
        report = made_report(blocks, method="rtn" if "rtn" in name else "autoround", seed=i, broken=i == 1)
        size = original["bytes"] * (0.34 - 0.022 * i)
        models.append(
            {
                "name": name,
                "path": f"output/{name}",
                "description": f"{name.split('-')[0]}, 4 bit, groups of 128",
                "bits_per_parameter": 8 * size / original["parameters"],
                "file_bytes": int(size),
                "quality": made_quality(kl, seed=i),
                "layers": [
                    {key: layer[key] for key in ("name", "block", "shape", "error")}
                    for layer in report["manifest"]["layers"]
                    if layer["bits"] is not None
                ],
                "standouts": report["standouts"],
            }
        )
    pairs = []
    for i, a in enumerate(models):
        for b in models[i + 1 :]:
            for figure in ("kl", "loss"):
                gap = (
                    a["quality"]["texts"][0]["kl"]["mean"]["value"]
                    - b["quality"]["texts"][0]["kl"]["mean"]["value"]
                ) * (1 if figure == "kl" else 0.8)
                spread = 0.15 * abs(gap) + 5e-4
                pairs.append(
                    {
                        "a": a["name"], "b": b["name"], "text": "wikitext2", "figure": figure,
                        "difference": {"value": gap, "low": gap - spread, "high": gap + spread},
                        "noise": gap - spread <= 0 <= gap + spread,
                    }
                )  # fmt: skip
    quality = made_quality(0.0)
    for text in quality["texts"]:
        text.update(kl=None, top1=None, reference_perplexity=None, perplexity_ratio=None)
    for task in quality["tasks"]:
        task.update(reference=None, flips=None)
    return {
        "created": "2026-01-02T03:04:05+00:00",
        "versions": {"roundel": "0.1.0", "torch": "2.9.0"},
        "reference": {
            "name": "made",
            "parameters": original["parameters"],
            "bits_per_parameter": 16.0,
            "file_bytes": original["bytes"],
            "quality": quality,
        },
        "models": models,
        "pairs": pairs,
        "verdict": [
            f"{names[0]} and {names[-1]} differ by more than chance in KL on wikitext2.",
            "Differences below 0.0005 nats are noise with so few windows.",
        ],
    }
