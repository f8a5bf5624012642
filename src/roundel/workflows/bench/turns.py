"""All models in turns, round by round, and what comes of it."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from roundel.errors import ModelError
from roundel.model.in_memory import name_of
from roundel.records.manifest import versions
from roundel.workflows.bench.asking import Worker
from roundel.workflows.bench.options import BenchOptions
from roundel.workflows.names import short_names
from roundel.workflows.open import find_model


@dataclass
class _Timed:
    """A model's process, and what it said."""

    name: str
    path: str
    worker: Worker
    about: dict[str, Any]
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)


def bench_models(models: Sequence[str | Path], options: BenchOptions) -> dict[str, Any]:
    """Time all models; see `roundel.bench`.

    Raises:
        RecipeError: no model, or one of them twice.
        ModelError: one cannot be opened or timed, or its process is gone.
        NonFiniteError: logits are NaN or infinite.
    """
    names = short_names(models)
    for model in models:
        if isinstance(model, torch.nn.Module):
            raise ModelError(
                f"{name_of(model)} is open already, and is timed in a process of its own: a folder, a .gguf file or a "
                "hub id is expected"
            )
    listener = options.listener
    for model in models:
        find_model(model, allow_pickle=options.allow_pickle, progress=listener)
    threads = options.threads or torch.get_num_threads()
    with ExitStack() as processes:
        timed: list[_Timed] = []
        with listener.stage("Opening models", len(names)) as opening:
            for name, model in zip(names, models, strict=True):
                listener.check_stop()
                worker = processes.enter_context(Worker(name, threads))
                timed.append(_Timed(name, str(model), worker, worker.ask("open", **_how(model, options))))
                opening.advance(note=name)
        memory = processes.enter_context(Worker("the memory's bandwidth", threads))
        bandwidths: list[float] = []
        with listener.stage("Timing models in turns", options.rounds * len(names)) as timing:
            for number in range(options.rounds):
                listener.check_stop()
                bandwidths.append(memory.ask("bandwidth"))
                # Back and forth, so that none is always the first after the same other.
                for one in timed if number % 2 == 0 else reversed(timed):
                    listener.check_stop()
                    one.prefill.append(options.prompt / one.worker.ask("prefill"))
                    one.decode.append(options.new / one.worker.ask("decode"))
                    timing.advance(note=one.name)
        return {
            "threads": threads,
            "prompt_tokens": options.prompt,
            "context_tokens": options.context,
            "new_tokens": options.new,
            "rounds": options.rounds,
            "bandwidth": spread(bandwidths),
            "models": [_summary(one, median(bandwidths)) for one in timed],
            "versions": versions(),
        }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, and the least and the largest, of some rounds."""
    return {"median": median(values), "low": min(values), "high": max(values)}


def _how(model: str | Path, options: BenchOptions) -> dict[str, Any]:
    """What `Opening` is made of."""
    return {
        "path": str(model),
        "prompt": options.prompt,
        "context": options.context,
        "new": options.new,
        "trust_remote_code": options.trust_remote_code,
        "allow_pickle": options.allow_pickle,
        "packed": options.packed,
        "mode": options.mode,
    }


def _summary(one: _Timed, bandwidth: float) -> dict[str, Any]:
    bytes_per_token = one.about["bytes_per_token"]
    return {
        "name": one.name,
        "path": one.path,
        "decode": spread(one.decode),
        "prefill": spread(one.prefill),
        "bytes_per_token": bytes_per_token,
        "bandwidth_share": median(one.decode) * bytes_per_token / bandwidth,
        "load_seconds": one.about["load_seconds"],
        "memory": {**one.about["memory"], "peak": one.worker.ask("peak")},
    }
