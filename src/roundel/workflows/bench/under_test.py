"""A model that is timed: opened, warmed up, and asked for prompts and new tokens."""

import inspect
import time
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from roundel.errors import ModelError, NonFiniteError
from roundel.model.bytes_read import bytes_read
from roundel.model.source import positions
from roundel.model.text_path import reading_text, text_model
from roundel.runtime.modes import Mode
from roundel.system.finite import all_finite
from roundel.system.memory import peak_memory
from roundel.workflows.open import find_model, open_model
from roundel.workflows.packed import Packing

# Where a model's output has its cache, and under which name the next step takes it: keys and values, or states.
_CACHES = ("past_key_values", "cache_params")
_WARM_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Opening:
    """Which model is opened, and how; whatever changes how it runs has its place here.

    Attributes:
        path: folder, .gguf file or hub id.
        prompt: tokens of the longest prompt.
        context: tokens before the first new one.
        new: tokens behind them.
        trust_remote_code: run modeling code that comes with the model.
        allow_pickle: read pickled checkpoints.
        packed, mode: as for `roundel.load`.
    """

    path: str
    prompt: int
    context: int
    new: int
    trust_remote_code: bool
    allow_pickle: bool
    packed: bool | None = None
    mode: Mode = "exact"


class ModelUnderTest:
    """A model in memory, and how long it took to open.

    Args:
        how: which one.

    Raises:
        ModelError: it cannot be opened, keeps no cache, or reaches less far than is asked for.
        NonFiniteError: its logits are NaN or infinite.
    """

    def __init__(self, how: Opening) -> None:
        self._how = how
        before = psutil.Process().memory_info().rss
        begun = time.perf_counter()
        place = find_model(how.path, allow_pickle=how.allow_pickle)
        packing = Packing(how.packed, how.mode)
        source = open_model(
            place, None, how.trust_remote_code, how.allow_pickle, quantized=True, packing=packing
        )
        seconds = time.perf_counter() - begun
        loaded = psutil.Process().memory_info().rss
        self._name, self._model = source.name, text_model(source.model)
        self._check_reach()
        known = _ordinary_tokens(source.model, source.tokenizer)
        self._ids = _drawn(known, max(how.prompt, how.context))
        # As `generate` does: of a prompt only the last logits are computed.
        takes = inspect.signature(type(self._model).forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self.about: dict[str, Any] = {
            "load_seconds": seconds,
            "memory": {"before_load": before, "loaded": loaded},
            "bytes_per_token": self._warmed(),
        }

    def prefill(self) -> float:
        """Seconds in which the prompt is read."""
        begun = time.perf_counter()
        self._read(self._ids[:, : self._how.prompt])
        return time.perf_counter() - begun

    def decode(self) -> float:
        """Seconds in which the new tokens are made, one after the other, each the likeliest. Whatever they are: the
        end of a text is a token like others."""
        found = self._read(self._ids[:, : self._how.context])
        begun = time.perf_counter()
        for _ in range(self._how.new):
            found = self._step(found)
        return time.perf_counter() - begun

    def peak(self) -> int:
        """Bytes of main memory that the process held at most so far."""
        return peak_memory()

    @torch.inference_mode()
    def _read(self, ids: torch.Tensor) -> Any:
        return self._model(input_ids=ids, use_cache=True, **self._last_only)

    @torch.inference_mode()
    def _step(self, found: Any) -> Any:
        token = found.logits[:, -1:].argmax(-1)
        cache = {name: past for name in _CACHES if (past := found.get(name)) is not None}
        return self._model(input_ids=token, use_cache=True, **cache)

    def _warmed(self) -> int:
        """Everything once, before it is timed; bytes of weights that a step reads."""
        with reading_text(self._model):
            found = self._read(self._ids)
            if not all_finite(found.logits):
                raise NonFiniteError(
                    f"the logits of {self._name} are NaN or infinite: a model that computes numbers is expected; its "
                    "weights are damaged, or it was quantized with settings that it does not bear"
                )
            if all(found.get(name) is None for name in _CACHES):
                raise ModelError(
                    f"{type(self._model).__name__} returns no KV cache: a model that goes on token by token is expected"
                )
            found = self._read(self._ids[:, : self._how.context])
            for _ in range(_WARM_STEPS):
                found = self._step(found)
            return bytes_read(self._model, lambda: self._step(found))

    def _check_reach(self) -> None:
        limit = positions(self._model)
        for words, wanted in (
            (f"prompt={self._how.prompt} is", self._how.prompt),
            (
                f"context={self._how.context} and new={self._how.new} are",
                self._how.context + self._how.new,
            ),
        ):
            if limit is not None and wanted > limit:
                raise ModelError(
                    f"{words} more than the {limit} positions of {self._name}: {limit} tokens or less are expected"
                )


def _ordinary_tokens(model: Any, tokenizer: Any | None) -> list[int]:
    """Ids that are neither the tokenizer's special tokens nor named in the config (pictures, ends of turns)."""
    table: Any = text_model(model).get_input_embeddings()
    count = getattr(table, "num_embeddings", None) or table.weight.shape[0]
    special = set(getattr(tokenizer, "all_special_ids", ()))
    for config in (model.config, text_model(model).config.get_text_config()):
        for name, value in config.to_dict().items():
            if name.endswith(("_token_id", "_token_index")):
                special.update(value if isinstance(value, list) else [value])
    return [index for index in range(count) if index not in special] or list(range(count))


def _drawn(known: list[int], count: int) -> torch.Tensor:
    """`[1, count]` of them, the same every time."""
    drawn = torch.randint(len(known), (1, count), generator=torch.Generator().manual_seed(0))
    return torch.tensor(known)[drawn]
