"""What the benchmarks of GGUF files share: what a file holds, its model, and how far it is from another."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from gguf import GGML_QUANT_SIZES, GGUFReader
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from roundel.calibration.options import CalibrationOptions
from roundel.calibration.self_text import sample_from_model
from roundel.evaluation.measure import measure
from roundel.evaluation.predict import Whole
from roundel.evaluation.quality import summarize
from roundel.evaluation.reference import Original
from roundel.evaluation.windows import EvaluationText

_UNQUANTIZED = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Contents:
    """The tensors of a file.

    Attributes:
        types: the type of each, by name.
        sizes: how many numbers each has.
        matrices: names of the blocks' matrices.
        digests: of each tensor's bytes.
        tokens: the vocabulary as it stands in the file, where it was asked for.
        start: id of the token that begins a text.
        end: id of the one that ends it.
    """

    types: dict[str, str]
    sizes: dict[str, int]
    matrices: list[str]
    digests: dict[str, bytes]
    tokens: list[str]
    start: int | None
    end: int | None

    @classmethod
    def read(cls, path: Path, *, tokens: bool = False) -> "Contents":
        """Of a GGUF file."""
        reader = GGUFReader(path)
        vocabulary = reader.get_field("tokenizer.ggml.tokens") if tokens else None
        ends = [reader.get_field(f"tokenizer.ggml.{which}_token_id") for which in ("bos", "eos")]
        return cls(
            {tensor.name: tensor.tensor_type.name for tensor in reader.tensors},
            {tensor.name: int(tensor.n_elements) for tensor in reader.tensors},
            [t.name for t in reader.tensors if t.name.startswith("blk.") and len(t.shape) > 1],
            {t.name: sha256(memoryview(t.data).cast("B")).digest() for t in reader.tensors},
            [] if vocabulary is None else vocabulary.contents(),
            *(None if field is None else int(field.contents()) for field in ends),
        )

    def figures(self, path: Path, source: "Contents") -> dict[str, Any]:
        """Size and types of the file, and how much of it is the source's as it was."""
        params = sum(self.sizes.values())
        weights = sum(self.sizes[name] for name in self.matrices)
        copied = sum(
            self.sizes[name]
            for name in self.matrices
            if self.types[name] not in _UNQUANTIZED and source.digests.get(name) == self.digests[name]
        )
        inside = Counter[str]()
        for name in self.matrices:
            inside[self.types[name]] += self.sizes[name]
        beside = {
            name.removesuffix(".weight"): self.types[name]
            for name in ("token_embd.weight", "output.weight", "position_embd.weight")
            if name in self.types
        }
        return {
            "bytes": path.stat().st_size,
            "bits_per_parameter": 8 * path.stat().st_size / params,
            "tensor_bits_per_parameter": self._bits(list(self.types)) / params,
            "bits_in_blocks": self._bits(self.matrices) / weights,
            "types_in_blocks": {kind: count / weights for kind, count in inside.most_common()},
            "types_beside": beside,
            "types": {name: self.types[name] for name in [*self.matrices, *(f"{n}.weight" for n in beside)]},
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


def open_gguf(path: Path) -> Any:
    """The model of a file in float32, as transformers reads it; without its tokenizer, which takes longer."""
    disable_progress_bar()
    where: dict[str, Any] = {"gguf_file": path.name}
    with path.open("rb") as file:
        head = file.read(4096)
    if b"gpt2" in head:
        # transformers takes 1024 positions for granted (5.23).
        where["config"] = AutoConfig.from_pretrained(str(path.parent), **where)
        where["config"].n_positions = where["config"].n_ctx
    return AutoModelForCausalLM.from_pretrained(str(path.parent), dtype=torch.float32, **where).eval()


def own_rows(model: Any, contents: Contents, count: int, length: int, seed: int) -> torch.Tensor:
    """`[count, length]` token ids of texts that the model writes itself, none of which ends before.

    Args:
        model: in memory.
        contents: of its file, which knows the tokens that begin and end a text.
        count, length: how many rows of how many tokens.
        seed: of the first draw.
    """
    model.config.bos_token_id = contents.start
    rows: list[torch.Tensor] = []
    while len(rows) < count:
        options = CalibrationOptions(nsamples=128, seqlen=length, seed=seed)
        rows += [
            row for row in sample_from_model(model, None, options) if not (row[1:] == contents.end).any()
        ]
        seed += 1000
    return torch.stack(rows[:count])


class Judge:
    """The original, and the windows on which files are compared with it.

    Args:
        original: a model in memory.
        text: windows and their convention.
    """

    def __init__(self, original: Any, text: EvaluationText) -> None:
        self.text = text
        asked = Original(Whole(original), None, None, {})
        self._wanted = list(asked.distributions(text.windows))

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
