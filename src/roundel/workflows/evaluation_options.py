"""Under which conditions models are measured."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypedDict

import torch

from roundel.calibration.options import check_encoding
from roundel.errors import OutputError, RecipeError
from roundel.runtime.modes import Mode
from roundel.system.devices import choose_device
from roundel.system.progress import Progress
from roundel.system.ranks import ALONE, Ranks
from roundel.workflows.arguments import INTERNAL
from roundel.workflows.packed import DECODED, Packing


class EvaluationArguments(TypedDict, total=False):
    """What `EvaluationOptions` are made of, for type checkers."""

    text: str | Sequence[str]
    tasks: Sequence[str]
    window: int | None
    limit: int | None
    add_bos: bool | None
    encoding: str | None
    fewshot: int | None
    batch_size: int
    data_dir: str | Path | None
    cache: str | Path | None
    top_k: int | None
    block_by_block: bool | None
    packed: bool | None
    mode: Mode
    blocks: str | None
    device: str
    trust_remote_code: bool
    allow_pickle: bool
    progress: Progress | None


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """On what models are measured, and how.

    Attributes:
        text: local files, data sets of the papers (wikitext2, ptb, ptb_new, c4, c4_new), or `pydoc`; none is welcome
            where there are tasks.
        tasks: suites (`spqr-zero-shot`, `lrq-commonsense`, `autoround-11`, `mmlu`), and tasks of lm-eval
            (docs/tasks.md).
        window: tokens per window; None: 2048, or as many as the models and the text reach.
        limit: at most so many windows of a text, and documents of a task.
        add_bos: every window begins with what the tokenizer puts in front of a text; None: those of local texts do,
            those of the papers' data sets are cut as in the papers.
        encoding: of local text files without a byte order mark; None: UTF-8.
        fewshot: examples before each document of a task; None: each task's own number, 5 for MMLU.
        batch_size: requests of a task in one pass.
        data_dir: folder with local copies of the data sets; None: the hub's.
        cache: folder in which the reference's predictions are kept, for the next model that is measured against it.
        top_k: compare with the reference's so many likeliest tokens and the mass of the rest; None: with all, exactly.
        block_by_block: have a block's weights in memory at a time; None: where the model is larger than memory.
        packed: quantized weights of the models stay packed in memory and compute so (docs/runtime.md), those of the
            reference never; False: they are decoded; None: packed on a CPU with kernels, where a model is stored in
            integers and fits into memory so.
        mode: of packed weights: `exact` multiplies as with decoded ones, `fast` rounds activations to 8 bits.
        blocks: pattern of the decoder blocks' names, where they are not found by themselves.
        device: where to compute.
        trust_remote_code: run modeling code that comes with the models.
        allow_pickle: read pickled checkpoints (with weights_only).
        progress: gets every message and window; None is silent.
    """

    text: str | Sequence[str] = "wikitext2"
    tasks: Sequence[str] = ()
    window: int | None = None
    limit: int | None = None
    add_bos: bool | None = None
    encoding: str | None = None
    fewshot: int | None = None
    batch_size: int = 1
    data_dir: str | Path | None = None
    cache: str | Path | None = None
    top_k: int | None = None
    block_by_block: bool | None = None
    packed: bool | None = None
    mode: Mode = "exact"
    blocks: str | None = None
    device: str = "auto"
    trust_remote_code: bool = False
    allow_pickle: bool = False
    progress: Progress | None = None
    # Of the processes that measure together.
    ranks: Ranks = field(default=ALONE, metadata=INTERNAL)

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise RecipeError(f"top_k={self.top_k}: 1 token or more is expected")
        if self.window is not None and self.window < 2:
            raise RecipeError(f"window={self.window}: 2 tokens or more are expected")
        if not self.tasks and (self.fewshot is not None or self.batch_size != 1):
            raise RecipeError(
                "fewshot and batch_size are for tasks, and there are none: name some, or leave them out"
            )
        for option in ("add_bos", "encoding"):
            if not self.text and getattr(self, option) is not None:
                raise RecipeError(f"{option} is for texts, and there are none: name some, or leave it out")
        if self.packed and self.block_by_block:
            raise RecipeError(
                "packed weights are in memory whole, and block_by_block reads a block at a time: leave one of them out"
            )
        Packing(self.packed, self.mode)  # refuses what does not go together
        try:
            check_encoding(self.encoding)
        except ValueError as error:
            raise RecipeError(str(error)) from error
        if not self.text and (self.cache is not None or self.top_k is not None):
            raise RecipeError(
                "cache and top_k are for texts, and there are none: name some, or leave them out"
            )
        cache = self.cache_folder
        if cache is not None and cache.exists() and not cache.is_dir():
            raise OutputError(f"{cache} is no folder: one to keep the original's predictions in is expected")

    @property
    def texts(self) -> Sequence[str]:
        """One after the other."""
        return [self.text] if isinstance(self.text, str) else self.text

    @property
    def data_folder(self) -> Path | None:
        """`data_dir` as a path."""
        return None if self.data_dir is None else Path(self.data_dir).expanduser()

    @property
    def cache_folder(self) -> Path | None:
        """`cache` as a path."""
        return None if self.cache is None else Path(self.cache).expanduser()

    @property
    def listener(self) -> Progress:
        """Who gets messages and windows."""
        return self.progress or Progress()

    @property
    def packing(self) -> Packing:
        """How quantized weights are held."""
        unsaid = self.packed is None and (self.block_by_block or self.place.type != "cpu")
        return DECODED if unsaid else Packing(self.packed, self.mode)

    @property
    def place(self) -> torch.device:
        """Where models compute.

        Raises:
            RecipeError: there is no such device.
        """
        return choose_device(self.device, self.ranks)

    def with_window(self, window: int) -> "EvaluationOptions":
        """The same with other windows."""
        return replace(self, window=window)

    def with_cache(self, folder: Path, top_k: int | None) -> "EvaluationOptions":
        """The same with the original's predictions kept."""
        return replace(self, cache=folder, top_k=top_k)
