"""Measuring named models: opened whole or block by block, on the same windows, against one original."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from roundel.activations.attach import attached
from roundel.calibration.prefix import with_prefix
from roundel.errors import ModelError
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
from roundel.records.folder import original_bytes, weight_bytes
from roundel.system.memory import free_memory
from roundel.system.progress import Progress
from roundel.workflows.evaluation_options import EvaluationOptions
from roundel.workflows.open import ModelOrPath, find_model, open_model
from roundel.workflows.packed import DECODED, may_be_packed

# A model with more bytes than this share of the free memory is read block by block.
_SHARE = 0.6
# So many windows show whether a convention suits a model: where it does, perplexities with and without the
# begin-of-text token differ by a few percent, and where it does not, by a multiple.
_JUDGED, _UNSUITED = 3, 1.25


def open_measured(
    model: ModelOrPath,
    tokenizer: Any | None,
    options: EvaluationOptions,
    opened: ExitStack,
    *,
    as_original: bool = False,
    opener: Callable[[Path | None], SourceModel] | None = None,
) -> SourceModel:
    """Open a model for measuring, quantized or not; what is kept for it on disk goes with `opened`.

    Args:
        model: folder, .gguf file, hub id, or a model in memory.
        tokenizer: for a model in memory.
        options: how it is measured.
        opened: what is to be closed behind it.
        as_original: it is what others are measured against: of one that others quantized, its weights count alone, as
            they do where it is quantized anew.
        opener: opens it in another way; gets a folder for a streamed model.

    Raises:
        ModelError: it cannot be opened.
    """
    stream_with = None
    model = find_model(model, allow_pickle=options.allow_pickle, progress=options.listener)
    packing = DECODED if as_original or opener is not None else options.packing
    if isinstance(model, Place):
        by_blocks = options.block_by_block
        if by_blocks is None:
            packed = may_be_packed(model, packing)
            size = weight_bytes(model.path) if packed else original_bytes(model.path)
            by_blocks = size > _SHARE * free_memory()
            if by_blocks:
                options.listener.say(
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
            options.trust_remote_code,
            options.allow_pickle,
            quantized=True,
            as_original=as_original,
            stream_with=stream_with,
            blocks=options.blocks,
            packing=packing,
        )
    if source.read_from and opener is None:
        options.listener.say(f"{Path(source.name).name}: {source.read_from}")
    if isinstance(source.storage, InMemory):
        source.model.to(options.place)
    return source


def read_texts(
    reader: Any | None, models: Sequence[SourceModel], options: EvaluationOptions
) -> list[EvaluationText]:
    """The windows on which some models are measured.

    Args:
        reader: the tokenizer.
        models: that must know the windows' tokens and positions.
        options: which texts, and how they are cut.

    Raises:
        CalibrationError: a text cannot be had.
        ModelError: no tokenizer, or a model does not reach so far.
    """
    if not options.texts:
        return []
    _check_reader(reader, models)
    longest = WINDOW
    for source in models:
        reach = positions(source.model)
        if reach is None:
            continue
        longest = min(longest, reach)
        if options.window is not None and options.window > reach:
            raise ModelError(
                f"windows of {options.window} tokens exceed the {reach} positions of {source.name}: "
                f"a window of {reach} or less is expected"
            )
    texts = [
        evaluation_windows(
            text,
            reader,
            options.window,
            options.limit,
            options.data_folder,
            options.add_bos,
            options.encoding,
            longest=longest,
        )
        for text in options.texts
    ]
    for source in models:
        for text in texts:
            check_reach(source.model, text.windows)
    return texts


def judge_conventions(
    source: SourceModel, texts: Sequence[EvaluationText], options: EvaluationOptions
) -> list[EvaluationText]:
    """The same texts; the convention of one that does not suit the model says so.

    Some models (Gemma) are lost on windows that are cut out of a running text, as the papers cut them, without the
    begin-of-text token. A few windows are measured with it too.

    Args:
        source: the original model.
        texts: as `read_texts` gives them.
        options: how the model is measured.
    """
    found = []
    for text in texts:
        # The first window of a text begins as texts do in any convention.
        windows = text.windows[1 : 1 + _JUDGED]
        if text.left_out and len(windows):
            loss = measure(_predictor(source, options), windows).loss
            front = len(text.left_out)
            begun = with_prefix(windows[:, :-front], text.left_out)
            same = measure(_predictor(source, options), begun).loss[:, front:]
            cut, whole = (math.exp(float(of.mean())) for of in (loss[:, :-front], same))
            if cut > _UNSUITED * whole:
                words = (
                    f", which does not suit {Path(source.name).name}: its perplexity is {cut:.4g} so, and {whole:.4g} "
                    f"with the token in front of {len(windows)} of these windows (--bos measures so)"
                )
                text = replace(text, convention=text.convention + words)
        found.append(text)
    return found


def ask_original(source: SourceModel, options: EvaluationOptions) -> Original:
    """The original's predictions, as the options want them kept."""
    identity = {}
    if options.cache_folder is not None:
        quantizer = attached(source.model)
        identity = {
            "model": fingerprint(source.model, source.storage),
            "dtype": str(source.model.dtype),
            "device": options.place.type,
            "activations": quantizer.summary if quantizer else "",
            "versions": {name: version(name) for name in ("torch", "transformers")},
        }
    return Original(_predictor(source, options), options.top_k, options.cache_folder, identity)


def measure_texts(
    source: SourceModel,
    texts: Sequence[EvaluationText],
    original: Original | None,
    options: EvaluationOptions,
) -> list[Measured]:
    """Every prediction of a model on every text.

    Raises:
        ModelError: vocabularies differ, or the model cannot be measured block by block.
        NonFiniteError: logits hold NaN or infinity.
    """
    ranks, progress = options.ranks, options.listener
    predictor = _predictor(source, options)
    found = []
    for text in texts:
        own = ranks.own(len(text.windows))
        wanted = original.distributions(text.windows[own]) if original is not None else None
        with progress.stage(f"{Path(source.name).name} on {Path(text.name).name}", len(own)):
            found.append(measure(predictor, text.windows, wanted, partial(_next, progress), ranks))
    return found


def check_tasks(reader: Any | None, models: Sequence[SourceModel], options: EvaluationOptions) -> None:
    """Raise what `measure_tasks` would raise of its tasks and their documents, before any text is measured.

    The tasks are not kept: lm-eval draws examples as it goes, so each model gets them anew.

    Args:
        reader: the tokenizer.
        models: that will be measured on them.
        options: which tasks.

    Raises:
        RoundelError: unknown tasks, documents that are absent, no tokenizer, or a model is not in memory whole.
    """
    if not options.tasks:
        return
    _check_reader(reader, models)
    for source in models:
        _check_whole(source)
    find_tasks(options.tasks, options.data_folder, options.fewshot)


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


def measure_tasks(source: SourceModel, tokenizer: Any | None, options: EvaluationOptions) -> list[TaskResult]:
    """A model's results on the tasks.

    Raises:
        RoundelError: unknown tasks, documents that are absent, no tokenizer, or the model is not in memory whole.
    """
    if not options.tasks:
        return []
    _check_whole(source)
    return run_tasks(
        source.model,
        tokenizer,
        options.tasks,
        data_dir=options.data_folder,
        limit=options.limit,
        fewshot=options.fewshot,
        batch_size=options.batch_size,
        progress=options.listener,
    )


def _next(progress: Progress) -> None:
    progress.check_stop()
    progress.advance()


def _predictor(source: SourceModel, options: EvaluationOptions) -> Predictor:
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
        find_blocks(source.model, options.blocks),
        source.storage,
        options.place,
        progress=options.listener,
        **around,
    )
