"""Measuring models that somebody named: opened whole or block by block, on the same windows, against one original."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from roundel.activations.attach import attached
from roundel.calibration.options import check_encoding
from roundel.calibration.prefix import with_prefix
from roundel.engine.plan import free_memory
from roundel.errors import ModelError, OutputError, RecipeError
from roundel.evaluation.blockwise import BlockByBlock
from roundel.evaluation.defaults import WINDOW
from roundel.evaluation.measure import Measured, measure
from roundel.evaluation.predict import Predictor, Whole, check_reach
from roundel.evaluation.reference import Original
from roundel.evaluation.tasks.harness import find_tasks, run_tasks
from roundel.evaluation.tasks.results import TaskResult
from roundel.evaluation.windows import EvaluationText, evaluation_windows
from roundel.model.blocks import find_blocks
from roundel.model.place import Place
from roundel.model.source import SourceModel, fingerprint, positions
from roundel.model.storage import InMemory
from roundel.records.folder import original_bytes
from roundel.system.devices import choose_device
from roundel.system.progress import Progress
from roundel.system.ranks import ALONE, Ranks
from roundel.workflows.open import ModelOrPath, find_model, open_model

# A model with more bytes than this share of the free memory is read block by block.
_SHARE = 0.6
# So many windows show whether a convention suits a model: where it does, perplexities with and without the
# begin-of-text token differ by a few percent, and where it does not, by a multiple.
_JUDGED, _UNSUITED = 3, 1.25


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Under which models are measured.

    Attributes:
        texts: names of data sets, or local files.
        tasks: suites, and tasks of lm-eval.
        fewshot: examples before each document of a task; None: each task's own number.
        batch_size: requests of a task in one pass.
        window: tokens of a window; None: 2048, or as many as every model and the text reach.
        limit: at most so many windows of a text, and documents of a task.
        add_bos: every window begins with what the tokenizer puts in front of a text; None: those of local texts do,
            those of the papers' data sets are cut as in the papers.
        encoding: of local text files without a byte order mark; None: UTF-8.
        data_dir: folder with local copies of data sets; None: the hub's.
        device: where models compute.
        block_by_block: a block's weights in memory at a time; None: where the model is larger than memory.
        cache: folder in which the original's predictions are kept; None: they are not.
        top_k: keep, and compare with, so many likeliest tokens; None: all logits.
        blocks: pattern of the decoder blocks' names; None: they are found.
        trust_remote_code: run modeling code that comes with models.
        allow_pickle: read pickled checkpoints.
        progress: told of the work.
        ranks: the processes that measure together.
    """

    texts: Sequence[str] = ()
    tasks: Sequence[str] = ()
    fewshot: int | None = None
    batch_size: int = 1
    window: int | None = None
    limit: int | None = None
    add_bos: bool | None = None
    encoding: str | None = None
    data_dir: Path | None = None
    device: str = "auto"
    block_by_block: bool | None = None
    cache: Path | None = None
    top_k: int | None = None
    blocks: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    progress: Progress = field(default_factory=Progress)
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise RecipeError(f"top_k={self.top_k}: 1 token or more is wanted")
        if self.window is not None and self.window < 2:
            raise RecipeError(f"window={self.window}: 2 tokens or more are wanted")
        if not self.tasks and (self.fewshot is not None or self.batch_size != 1):
            raise RecipeError(
                "fewshot and batch_size are for tasks, and there are none: name some, or leave them out"
            )
        for option in ("add_bos", "encoding"):
            if not self.texts and getattr(self, option) is not None:
                raise RecipeError(f"{option} is for texts, and there are none: name some, or leave it out")
        try:
            check_encoding(self.encoding)
        except ValueError as error:
            raise RecipeError(str(error)) from error
        if not self.texts and (self.cache is not None or self.top_k is not None):
            raise RecipeError(
                "cache and top_k are for texts, and there are none: name some, or leave them out"
            )
        if self.cache is not None and self.cache.exists() and not self.cache.is_dir():
            raise OutputError(
                f"{self.cache} is no folder: one to keep the original's predictions in is wanted"
            )

    def with_window(self, window: int) -> "Conditions":
        """The same with other windows."""
        return replace(self, window=window)

    def with_cache(self, folder: Path, top_k: int | None) -> "Conditions":
        """The same with the original's predictions kept."""
        return replace(self, cache=folder, top_k=top_k)

    @property
    def place(self) -> torch.device:
        """Where models compute.

        Raises:
            RecipeError: there is no such device.
        """
        return choose_device(self.device, self.ranks)


def open_measured(
    model: ModelOrPath,
    tokenizer: Any | None,
    conditions: Conditions,
    opened: ExitStack,
    *,
    as_original: bool = False,
    opener: Callable[[Path | None], SourceModel] | None = None,
) -> SourceModel:
    """Open a model for measuring, quantized or not; what is kept for it on disk goes with `opened`.

    Args:
        model: folder, .gguf file, hub id, or a model in memory.
        tokenizer: for a model in memory.
        conditions: how it is measured.
        opened: what is to be closed behind it.
        as_original: it is what others are measured against: of one that others quantized, its weights count alone, as
            they do where it is quantized anew.
        opener: opens it in another way; told of a folder for a streamed model.

    Raises:
        ModelError: it cannot be opened.
    """
    stream_with = None
    model = find_model(model, allow_pickle=conditions.allow_pickle, progress=conditions.progress)
    if isinstance(model, Place):
        by_blocks = conditions.block_by_block
        if by_blocks is None:
            by_blocks = original_bytes(model.path) > _SHARE * free_memory()
            if by_blocks:
                conditions.progress.say(
                    f"{Path(model.name).name} is measured block by block: memory does not hold it"
                )
        if by_blocks:
            stream_with = Path(opened.enter_context(TemporaryDirectory(prefix="roundel-")))
    if opener is not None:
        source = opener(stream_with)
    else:
        source = open_model(
            model,
            tokenizer,
            conditions.trust_remote_code,
            conditions.allow_pickle,
            quantized=True,
            as_original=as_original,
            stream_with=stream_with,
            blocks=conditions.blocks,
        )
    if source.read_from and opener is None:
        conditions.progress.say(f"{Path(source.name).name}: {source.read_from}")
    if isinstance(source.storage, InMemory):
        source.model.to(conditions.place)
    return source


def read_texts(
    reader: Any | None, models: Sequence[SourceModel], conditions: Conditions
) -> list[EvaluationText]:
    """The windows on which some models are measured.

    Args:
        reader: the tokenizer.
        models: that must know the windows' tokens and positions.
        conditions: which texts, and how they are cut.

    Raises:
        CalibrationError: a text cannot be had.
        ModelError: no tokenizer, or a model does not reach so far.
    """
    if not conditions.texts:
        return []
    _check_reader(reader, models)
    longest = WINDOW
    for source in models:
        reach = positions(source.model)
        if reach is None:
            continue
        longest = min(longest, reach)
        if conditions.window is not None and conditions.window > reach:
            raise ModelError(
                f"windows of {conditions.window} tokens exceed the {reach} positions of {source.name}: "
                f"a window of {reach} or less is wanted"
            )
    texts = [
        evaluation_windows(
            text,
            reader,
            conditions.window,
            conditions.limit,
            conditions.data_dir,
            conditions.add_bos,
            conditions.encoding,
            longest=longest,
        )
        for text in conditions.texts
    ]
    for source in models:
        for text in texts:
            check_reach(source.model, text.windows)
    return texts


def judge_conventions(
    source: SourceModel, texts: Sequence[EvaluationText], conditions: Conditions
) -> list[EvaluationText]:
    """The same texts; the convention of one that does not suit the model says so.

    Some models (Gemma) are lost on windows that are cut out of a running text, as the papers cut them, without the
    begin-of-text token. A few windows are measured with it too.

    Args:
        source: the original model.
        texts: as `read_texts` gives them.
        conditions: how the model is measured.
    """
    found = []
    for text in texts:
        # The first window of a text begins as texts do in any convention.
        windows = text.windows[1 : 1 + _JUDGED]
        if text.left_out and len(windows):
            loss = measure(_predictor(source, conditions), windows).loss
            front = len(text.left_out)
            begun = with_prefix(windows[:, :-front], text.left_out)
            same = measure(_predictor(source, conditions), begun).loss[:, front:]
            cut, whole = (math.exp(float(of.mean())) for of in (loss[:, :-front], same))
            if cut > _UNSUITED * whole:
                words = (
                    f", which does not suit {Path(source.name).name}: its perplexity is {cut:.4g} so, and {whole:.4g} "
                    f"with the token in front of {len(windows)} of these windows (--bos measures so)"
                )
                text = replace(text, convention=text.convention + words)
        found.append(text)
    return found


def ask_original(source: SourceModel, conditions: Conditions) -> Original:
    """The original's predictions, as the conditions want them kept."""
    identity = {}
    if conditions.cache is not None:
        quantizer = attached(source.model)
        identity = {
            "model": fingerprint(source.model, source.storage),
            "dtype": str(source.model.dtype),
            "device": conditions.place.type,
            "activations": quantizer.words if quantizer else "",
            "versions": {name: version(name) for name in ("torch", "transformers")},
        }
    return Original(_predictor(source, conditions), conditions.top_k, conditions.cache, identity)


def measure_texts(
    source: SourceModel, texts: Sequence[EvaluationText], original: Original | None, conditions: Conditions
) -> list[Measured]:
    """Every prediction of a model on every text.

    Raises:
        ModelError: vocabularies differ, or the model cannot be measured block by block.
        NonFiniteError: logits hold NaN or infinity.
    """
    ranks, progress = conditions.ranks, conditions.progress
    predictor = _predictor(source, conditions)
    found = []
    for text in texts:
        own = ranks.own(len(text.windows))
        wanted = original.distributions(text.windows[own]) if original is not None else None
        with progress.stage(f"{Path(source.name).name} on {Path(text.name).name}", len(own)):
            found.append(measure(predictor, text.windows, wanted, partial(_next, progress), ranks))
    return found


def check_tasks(reader: Any | None, models: Sequence[SourceModel], conditions: Conditions) -> None:
    """Raise what `measure_tasks` would raise of its tasks and their documents, before any text is measured.

    The tasks are not kept: lm-eval draws examples as it goes, so each model gets them anew.

    Args:
        reader: the tokenizer.
        models: that will be measured on them.
        conditions: which tasks.

    Raises:
        RoundelError: unknown tasks, documents that are absent, no tokenizer, or a model is not in memory whole.
    """
    if not conditions.tasks:
        return
    _check_reader(reader, models)
    for source in models:
        _check_whole(source)
    find_tasks(conditions.tasks, conditions.data_dir, conditions.fewshot)


def _check_reader(reader: Any | None, models: Sequence[SourceModel]) -> None:
    if reader is None:
        raise ModelError(
            f"{models[0].name} comes without a tokenizer: pass tokenizer=, or a folder that has one"
        )


def _check_whole(source: SourceModel) -> None:
    if not isinstance(source.storage, InMemory):
        raise ModelError(
            f"tasks run on a model in memory, and {source.name} is read block by block: pass --whole, or leave the "
            "tasks out"
        )


def measure_tasks(source: SourceModel, tokenizer: Any | None, conditions: Conditions) -> list[TaskResult]:
    """A model's results on the tasks.

    Raises:
        RoundelError: unknown tasks, documents that are absent, no tokenizer, or the model is not in memory whole.
    """
    if not conditions.tasks:
        return []
    _check_whole(source)
    return run_tasks(
        source.model,
        tokenizer,
        conditions.tasks,
        data_dir=conditions.data_dir,
        limit=conditions.limit,
        fewshot=conditions.fewshot,
        batch_size=conditions.batch_size,
        progress=conditions.progress,
    )


def _next(progress: Progress) -> None:
    progress.check_stop()
    progress.advance()


def _predictor(source: SourceModel, conditions: Conditions) -> Predictor:
    if isinstance(source.storage, InMemory):
        return Whole(source.model)
    quantizer = attached(source.model)
    around: dict[str, Any] = {}
    if quantizer is not None:
        around["quiet"] = partial(quantizer.switched, on=False)
        if quantizer.kv is not None:
            around["make_cache"] = quantizer.cache
    return BlockByBlock(
        source.model,
        find_blocks(source.model, conditions.blocks),
        source.storage,
        conditions.place,
        progress=conditions.progress,
        **around,
    )
