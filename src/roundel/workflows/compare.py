"""Several models against one original: on the same windows, their files, and where their weights differ."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from roundel.evaluation.measure import Measured
from roundel.evaluation.pairs import Pair, answers_verdict, compare_pairs, verdict
from roundel.evaluation.quality import summarize
from roundel.evaluation.tasks.results import to_plain
from roundel.evaluation.windows import EvaluationText
from roundel.formats.reload import unpack_model
from roundel.model.blocks import find_blocks
from roundel.model.bytes_read import bytes_held
from roundel.model.checkpoint import is_own
from roundel.model.experts import divide
from roundel.model.in_memory import check_apart
from roundel.model.linears import LinearView, rows_of
from roundel.model.source import SourceModel
from roundel.model.text_path import text_model
from roundel.records.anomalies import standouts
from roundel.records.folder import weight_bytes
from roundel.records.manifest import read_manifest, versions
from roundel.report.parts.summary import describe_method
from roundel.workflows.evaluation_options import EvaluationOptions
from roundel.workflows.measuring import (
    ask_original,
    check_tasks,
    judge_conventions,
    measure_tasks,
    measure_texts,
    open_measured,
    read_texts,
)
from roundel.workflows.names import short_names
from roundel.workflows.open import ModelOrPath, find_model

# The original's predictions are kept for as long as the comparison takes: all of them, up to so many bytes.
_KEPT_BYTES = 8 << 30
_LIKELIEST = 1024


@dataclass(frozen=True)
class _Measurements:
    """What one model came to."""

    about: dict[str, Any]
    measured: list[Measured]


def compare_models(
    models: Sequence[ModelOrPath], reference: ModelOrPath, tokenizer: Any | None, options: EvaluationOptions
) -> dict[str, Any]:
    """Measure all models, and compare them.

    Args:
        models: folders, .gguf files, hub ids, or models in memory.
        reference: the original.
        tokenizer: for models in memory.
        options: texts, windows, and so on.

    Returns:
        The comparison as plain data, from which its page is made.

    Raises:
        RoundelError: a model or a text cannot be read, or logits are not finite.
    """
    names = short_names(models)
    check_apart([*models, reference])
    found_at = [find_model(model, progress=options.listener) for model in models]
    with ExitStack() as opened:
        original = open_measured(reference, tokenizer, options, opened, as_original=True)
        texts = read_texts(original.tokenizer, [original], options)
        check_tasks(original.tokenizer, [original], options)
        texts = judge_conventions(original, texts, options)
        if texts and options.cache_folder is None:
            folder = opened.enter_context(TemporaryDirectory(prefix="roundel-"))
            options = _keeping(options, Path(folder), original, texts)
        asked = ask_original(original, options)
        theirs = measure_tasks(original, original.tokenizer, options)
        parameters = sum(parameter.numel() for parameter in original.model.parameters())
        taken: dict[str, _Measurements] = {}
        for name, model in zip(names, found_at, strict=True):
            with ExitStack() as one:
                source = open_measured(model, original.tokenizer, options, one)
                read_texts(original.tokenizer, [source], options)
                measured = measure_texts(source, texts, asked, options)
                about = _about(name, source, parameters)
                tasks = to_plain(measure_tasks(source, original.tokenizer, options), theirs)
                about["quality"] = {"texts": _summaries(texts, measured), "tasks": tasks}
                about["layers"] = layer_errors(source, original, options)
                about["standouts"] = standouts(about["layers"])
                taken[name] = _Measurements(about, measured)
    pairs: list[Pair] = []
    said: list[str] = []
    for number, text in enumerate(texts):
        on_text = {name: found.measured[number] for name, found in taken.items()}
        kl = {name: float(found.kl.mean()) for name, found in on_text.items() if found.kl is not None}
        of_text = compare_pairs(text.name, on_text)
        said += verdict(names, kl, of_text, Path(text.name).name)
        pairs += of_text
    said += answers_verdict({name: found.about["quality"]["tasks"] for name, found in taken.items()})
    said += [f"{name}: {out['words']}." for name, found in taken.items() for out in found.about["standouts"]]
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "reference": {
            "name": Path(original.name).name,
            "parameters": parameters,
            **_size(original, parameters),
            "quality": {
                "texts": _of_original(texts, next(iter(taken.values())).measured),
                "tasks": to_plain(theirs),
            },
        },
        "models": [found.about for found in taken.values()],
        "pairs": [asdict(pair) for pair in pairs],
        "verdict": said,
    }


def layer_errors(
    source: SourceModel, original: SourceModel, options: EvaluationOptions
) -> list[dict[str, Any]]:
    """How far the weights of each Linear are from the original's: `||W - W'||^2 / ||W||^2`.

    None for a Linear whose scale was moved into a norm (its weights differ by design), and where the model has none of
    that name. Measured on the weights that compute, so it shows damage to a file after it was written, too.
    """
    unpack_model(source.model)
    for model in (source.model, original.model):
        divide(model)
    smoothed = _smoothed(source)
    stack, own = find_blocks(original.model, options.blocks), find_blocks(source.model, options.blocks)
    found: list[dict[str, Any]] = []
    for index in range(len(stack)):
        name = stack.block_name(index)
        original.storage.load(stack.blocks[index], name)
        source.storage.load(own.blocks[index], own.block_name(index))
        for view in stack.linears(index):
            error = None if view.name in smoothed else _error(view, source.model)
            found.append({"name": view.name, "block": index, "shape": list(view.shape), "error": error})
        original.storage.release(stack.blocks[index], name)
        source.storage.release(own.blocks[index], own.block_name(index))
    return found


def _error(view: LinearView, model: Any) -> float | None:
    try:
        other = LinearView(view.name, model.get_submodule(view.name)).weight
    except AttributeError:
        return None
    wanted = view.weight.float()
    if other.shape != wanted.shape:
        return None
    norm = float(wanted.square().sum())
    return float((other.float().to(wanted.device) - wanted).square().sum()) / norm if norm else 0.0


def _smoothed(source: SourceModel) -> set[str]:
    if source.place is None or not is_own(source.place.path):
        return set()
    return {layer["name"] for layer in read_manifest(source.place.path)["layers"] if layer["smoothed"]}


def _keeping(
    options: EvaluationOptions, folder: Path, original: SourceModel, texts: Sequence[EvaluationText]
) -> EvaluationOptions:
    """With a place for the original's predictions, and as many of them as fit there."""
    tokens = sum(text.windows.numel() for text in texts)
    vocabulary = rows_of(text_model(original.model).get_input_embeddings())
    top = options.top_k
    if top is None and tokens * vocabulary * original.model.dtype.itemsize > _KEPT_BYTES:
        top = _LIKELIEST
        options.listener.say(
            f"KL is counted over the original's {top} likeliest tokens and the rest: its whole predictions of "
            f"{tokens} tokens would be too many to keep (--top-k decides)"
        )
    return options.with_cache(folder, top)


def _about(name: str, source: SourceModel, parameters: int) -> dict[str, Any]:
    return {
        "name": name,
        "path": source.name,
        "description": _description(source),
        **_size(source, parameters),
    }


def _size(source: SourceModel, parameters: int) -> dict[str, Any]:
    """Bytes of the weight files; of a model in memory, or made of others, of its tensors."""
    size = weight_bytes(source.place.path) if source.place is not None and not source.parents else 0
    size = size or bytes_held(source.model)
    return {"file_bytes": size, "bits_per_parameter": 8 * size / parameters}


def _description(source: SourceModel) -> str:
    if source.place is not None and is_own(source.place.path):
        manifest = read_manifest(source.place.path)
        recipe, bits = manifest["recipe"], manifest["bits_per_weight"]
        return f"{describe_method(recipe)}; {bits:.3f} bits per quantized weight; {recipe['format']}"
    method = getattr(getattr(source.model.config, "quantization_config", None), "quant_method", None)
    dtype = str(source.model.dtype).removeprefix("torch.")
    if source.read_from:
        return source.read_from
    return dtype if method is None else f"{getattr(method, 'value', method)}, {dtype}"


def _summaries(texts: Sequence[EvaluationText], measured: Sequence[Measured]) -> list[dict[str, Any]]:
    return [asdict(summarize(t.name, t.convention, found)) for t, found in zip(texts, measured, strict=True)]


def _of_original(texts: Sequence[EvaluationText], measured: Sequence[Measured]) -> list[dict[str, Any]]:
    alone = [Measured(found.reference_loss) for found in measured if found.reference_loss is not None]
    return _summaries(texts, alone)
