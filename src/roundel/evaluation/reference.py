"""What the original predicts, kept on disk, so that ten variants cost one run of it.

A file for each window, named by the hash of everything that decides it: the original's weights, the window, the form
(all logits, or the k likeliest tokens), the libraries. Windows of another number, or of another text, find what is
theirs; nothing ever has to be cleared for being out of date.
"""

import json
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from roundel.errors import OutputError
from roundel.evaluation.distribution import Distribution, Full, Top
from roundel.evaluation.measure import check_finite
from roundel.evaluation.predict import Predictor
from roundel.model.linears import rows_of
from roundel.model.text_path import text_model
from roundel.system.files import reported, write_durably


class Original:
    """The original's predictions.

    Args:
        predictor: the original.
        top: keep so many likeliest tokens and the mass of the rest; None: all logits, which is exact.
        folder: where predictions are kept; None: they are computed whenever they are asked for.
        identity: plain data that decides the predictions, besides the windows.
    """

    def __init__(
        self, predictor: Predictor, top: int | None, folder: Path | None, identity: dict[str, Any]
    ) -> None:
        self.predictor, self.folder = predictor, folder
        self.top = None if top is not None and top >= _vocabulary(predictor.model) else top
        self._identity = json.dumps({**identity, "top": self.top}, sort_keys=True).encode()

    def distributions(self, windows: torch.Tensor) -> Iterator[Distribution]:
        """Of each of `windows [N, S]` in turn.

        Raises:
            OutputError: the folder cannot be written, or a file in it is damaged.
            NonFiniteError: the logits hold NaN or infinity.
        """
        if self.folder is None:
            yield from self._computed(windows)
            return
        with reported(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        paths = [self._path(window) for window in windows]
        missing = [number for number, path in enumerate(paths) if not path.is_file()]
        for number, found in zip(missing, self._computed(windows[missing]), strict=True):
            tensors = {key: value for key, value in vars(found).items() if isinstance(value, torch.Tensor)}
            tensors = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
            write_durably(paths[number], lambda part, tensors=tensors: save_file(tensors, part))  # type: ignore[misc]
        for path in paths:
            yield self._read(path)

    def _computed(self, windows: torch.Tensor) -> Iterator[Full | Top]:
        for number, logits in enumerate(self.predictor.logits(windows)):
            check_finite(logits, number)
            yield Full(logits) if self.top is None else Top.of(logits, windows[number], self.top)

    def _path(self, window: torch.Tensor) -> Path:
        assert self.folder is not None
        digest = blake2b(self._identity, digest_size=16)
        digest.update(window.cpu().numpy().tobytes())
        return self.folder / f"{digest.hexdigest()}.safetensors"

    def _read(self, path: Path) -> Distribution:
        try:
            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
            if self.top is None:
                return Full(tensors["logits"])
            return Top(**tensors, vocabulary=_vocabulary(self.predictor.model))
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise OutputError(
                f"{path} cannot be read ({error}): take it away, and it is computed anew"
            ) from error


def _vocabulary(model: Any) -> int:
    """Logits of a token: rows of the head, which may be more than the tokenizer has tokens."""
    head = text_model(model).get_output_embeddings()
    if head is not None:
        return rows_of(head)
    return int(model.config.get_text_config().vocab_size)
