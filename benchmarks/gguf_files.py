"""What the benchmarks of GGUF files share: what a file holds, its model, and how far it is from another."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from gguf import GGML_QUANT_SIZES, GGUFReader, dequantize
from torch.nn.functional import log_softmax
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)
from transformers.utils.logging import disable_progress_bar

from roundel.calibration.options import CalibrationOptions
from roundel.calibration.self_text import sample_from_model
from roundel.evaluation.distribution import Difference, check_vocabulary, losses_of
from roundel.evaluation.measure import measure
from roundel.evaluation.predict import Whole
from roundel.evaluation.quality import summarize
from roundel.evaluation.windows import EvaluationText

_UNQUANTIZED = ("F32", "F16", "BF16")
# What a judge says of a file.
JUDGED = ("kl", "kl_low", "kl_high", "kl_median", "top1", "perplexity", "reference_perplexity", "convention")


class GgufFile:
    """A file, its header read.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = GGUFReader(path)
        tensors = self._reader.tensors
        self.types = {tensor.name: tensor.tensor_type.name for tensor in tensors}
        self.sizes = {tensor.name: int(tensor.n_elements) for tensor in tensors}
        self.matrices = [t.name for t in tensors if t.name.startswith("blk.") and len(t.shape) > 1]

    def value(self, key: str) -> Any:
        """Of the metadata; None where there is none."""
        field = self._reader.get_field(key)
        return None if field is None else field.contents()

    @cached_property
    def digests(self) -> dict[str, bytes]:
        """Of each tensor's type and bytes."""
        return {
            t.name: sha256(t.tensor_type.name.encode() + t.data.tobytes()).digest()
            for t in self._reader.tensors
        }

    @property
    def digest(self) -> str:
        """Of all tensors: two files with the same compute the same."""
        return sha256(b"".join(self.digests[name] for name in sorted(self.digests))).hexdigest()

    def open(self) -> Any:
        """The model in float32, as transformers reads it; without its tokenizer, which takes longer."""
        disable_progress_bar()
        where: dict[str, Any] = {"gguf_file": self.path.name}
        if self.value("general.architecture") == "gpt2":
            # transformers takes 1024 positions for granted (5.23).
            where["config"] = AutoConfig.from_pretrained(str(self.path.parent), **where)
            where["config"].n_positions = where["config"].n_ctx
        folder = str(self.path.parent)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **where).eval()

    def fill(self, model: Any) -> None:
        """Put the file's weights into the model of another file of the same model.

        What `open` would do, without reading the vocabulary once more: of a large one that takes most of the time.
        """
        kind = TENSOR_PROCESSORS.get(self.value("general.architecture"), TensorProcessor)
        processor = kind(config=model.config.to_dict())
        names = get_gguf_hf_weights_map(model, processor)
        places, found = model.state_dict(), set()
        for tensor in self._reader.tensors:
            weights, name, _ = processor.process(
                dequantize(tensor.data, tensor.tensor_type),
                tensor.name,
                tensor_key_mapping=names,
                parsed_parameters={"tensors": {}},
            )
            if name in names:
                places[names[name]].copy_(torch.from_numpy(weights.copy()))
                found.add(places[names[name]].data_ptr())
        missing = [name for name, place in places.items() if place.data_ptr() not in found]
        if missing:
            raise ValueError(f"{self.path.name} has no {missing[0]}")

    def figures(self, source: "GgufFile") -> dict[str, Any]:
        """Size and types, and how much of the file is the source's as it was."""
        size, params = self.path.stat().st_size, sum(self.sizes.values())
        weights = sum(self.sizes[name] for name in self.matrices)
        copied = sum(
            self.sizes[name]
            for name in self.matrices
            if self.types[name] not in _UNQUANTIZED and source.digests.get(name) == self.digests[name]
        )
        inside = Counter[str]()
        for name in self.matrices:
            inside[self.types[name]] += self.sizes[name]
        outside = ("token_embd", "output", "position_embd")
        beside = {name: self.types[f"{name}.weight"] for name in outside if f"{name}.weight" in self.types}
        return {
            "bytes": size,
            "bits_per_parameter": 8 * size / params,
            "tensor_bits_per_parameter": self._bits(list(self.types)) / params,
            "bits_in_blocks": self._bits(self.matrices) / weights,
            "types_in_blocks": {kind: count / weights for kind, count in inside.most_common()},
            "types_beside": beside,
            "types": {name: self.types[name] for name in self.matrices},
            "copied": copied / weights,
        }

    def _bits(self, names: Sequence[str]) -> float:
        return sum(8 * self.sizes[name] * _per_number(self.types[name]) for name in names)


def _per_number(kind: str) -> float:
    """Bytes of a number of a type."""
    sizes = {key.name: (block, size) for key, (block, size) in GGML_QUANT_SIZES.items()}
    block, size = sizes[kind]
    return size / block


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    digest = sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 24):
            digest.update(piece)
    return digest.hexdigest()


def own_rows(model: Any, file: GgufFile, count: int, length: int, seed: int) -> torch.Tensor:
    """`[count, length]` token ids of texts that the model writes itself, none of which ends before.

    Args:
        model: in memory.
        file: its own, which knows the tokens that begin and end a text.
        count, length: how many rows of how many tokens.
        seed: of the first draw.
    """
    model.config.bos_token_id = file.value("tokenizer.ggml.bos_token_id")
    end = file.value("tokenizer.ggml.eos_token_id")
    rows: list[torch.Tensor] = []
    while len(rows) < count:
        options = CalibrationOptions(nsamples=128, seqlen=length, seed=seed)
        rows += [row for row in sample_from_model(model, None, options) if not (row[1:] == end).any()]
        seed += 1000
    return torch.stack(rows[:count])


@dataclass(frozen=True)
class Kept:
    """The original's predictions on a window, in the form in which many models are compared with them.

    Attributes:
        log_p: `[S, V]` fp32.
        likeliest: `[S]`.
        loss: `[S - 1]` fp32.
    """

    log_p: torch.Tensor
    likeliest: torch.Tensor
    loss: torch.Tensor

    @classmethod
    def of(cls, logits: torch.Tensor, window: torch.Tensor) -> "Kept":
        """Of `logits [S, V]`."""
        log_p = log_softmax(logits, -1)
        return cls(log_p, logits.argmax(-1), losses_of(log_p[:-1], window[1:]))

    def compare(self, found: torch.Tensor, window: torch.Tensor) -> Difference:
        """What `roundel.evaluation.distribution.Full` finds, bit for bit."""
        check_vocabulary(self.log_p.shape[-1], found)
        log_q = log_softmax(found, -1)
        kl = (self.log_p.exp() * (self.log_p - log_q)).sum(-1)
        found_loss = losses_of(log_q[:-1], window[1:])
        return Difference(self.loss, found_loss, kl, found.argmax(-1) == self.likeliest)


class Judge:
    """The original, and the windows on which files are compared with it.

    Args:
        original: a model in memory.
        text: windows and their convention.
    """

    def __init__(self, original: Any, text: EvaluationText) -> None:
        self.text = text
        asked = zip(Whole(original).logits(text.windows), text.windows, strict=True)
        self._wanted = [Kept.of(logits, window) for logits, window in asked]

    def figures(self, model: Any) -> dict[str, Any]:
        """KL with its interval, agreement, perplexities."""
        quality = summarize(
            self.text.name, self.text.convention, measure(Whole(model), self.text.windows, self._wanted)
        )
        assert quality.kl is not None
        assert quality.top1 is not None
        assert quality.reference_perplexity is not None
        mean = quality.kl.mean
        return {
            "kl": mean.value,
            "kl_low": mean.low,
            "kl_high": mean.high,
            "kl_median": quality.kl.median,
            "top1": quality.top1.value,
            "perplexity": quality.perplexity.value,
            "reference_perplexity": quality.reference_perplexity.value,
            "convention": self.text.convention,
        }
