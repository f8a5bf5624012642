"""What a Python user imports: quantize, load, evaluate."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from roundel.activations.attach import ActivationQuantizer, attach_saved, attached
from roundel.calibration.gather import Calibration, CalibrationSource, gather_calibration
from roundel.engine.coverage import Coverage, decide
from roundel.engine.devices import autocast_dtype, choose_device
from roundel.engine.walk import Job, quantize_model
from roundel.errors import ModelError, RecipeError
from roundel.evaluation.measure import measure
from roundel.evaluation.windows import evaluation_windows
from roundel.formats import CONTAINERS, INTEGER_FILES, Layer, is_container, open_container
from roundel.formats import read_integers as read_integer_file
from roundel.formats.folder import atomic_folder, check_target
from roundel.grid import QuantizedWeight
from roundel.model.blocks import find_blocks
from roundel.model.linears import LinearView
from roundel.model.source import SourceModel, fingerprint, open_source, open_tokenizer
from roundel.progress import Progress
from roundel.recipe import Recipe
from roundel.report.contents import measure_folder
from roundel.report.manifest import build_manifest, write_manifest

ModelOrPath = str | Path | torch.nn.Module


@dataclass(frozen=True)
class Quantized:
    """What `quantize` returns.

    Attributes:
        model: the model with dequantized weights in its Linears; activations are quantized as the recipe says.
        tokenizer: the model's, or None.
        weights: the integers of every quantized Linear, by full name.
        manifest: everything about the run as plain data.
        output: the written folder, or None.
    """

    model: Any
    tokenizer: Any | None
    weights: dict[str, QuantizedWeight]
    manifest: dict[str, Any]
    output: Path | None


def quantize(
    model: ModelOrPath,
    recipe: Recipe | str | Path = "autoround-w4g128",
    *,
    calibration: CalibrationSource | None = None,
    output: str | Path | None = None,
    tokenizer: Any | None = None,
    device: str = "auto",
    overwrite: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Quantized:
    """Quantize a causal language model.

    Args:
        model: folder, .gguf file or hub id; or a model in memory, which is then changed in place.
        recipe: a `Recipe`, the name of a shipped one, or a YAML file.
        calibration: file or name; a list of strings, chats or token ids; or an integer tensor `[N, S]`.
            None: what the recipe says, else text that the model writes itself.
        output: folder to write; None keeps the result in memory.
        tokenizer: for a model in memory; written along, and needed for calibration text.
        device: where blocks compute: auto, cpu, cuda, xpu, mps.
        overwrite: replace a non-empty output folder.
        trust_remote_code: run modeling code that comes with the model.
        allow_pickle: read pickled checkpoints (with weights_only).
        progress: is told of the work; None is silent.

    Raises:
        RoundelError: bad input or a failed check; nothing is written then.
    """
    progress = progress or Progress()
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    if calibration is not None and not recipe.needs_calibration:
        raise RecipeError(
            f"the recipe {recipe.name} reads no calibration data and would ignore it; set start=search, or "
            "leave the calibration out"
        )
    target = Path(output).expanduser() if output is not None else None
    if target is not None:
        check_target(target, overwrite)
    where = choose_device(device)
    source = _open(model, tokenizer, trust_remote_code, allow_pickle)

    if attached(source.model) is not None:
        raise ModelError(f"{source.name} is quantized already: the original, unquantized model is wanted")
    stack = find_blocks(source.model)
    coverage = decide(source.model, stack, recipe)
    container = CONTAINERS[recipe.format]
    if target is not None:
        container.check(_layers(coverage, recipe, source.model), source.model.dtype, recipe.activations)
    data: Calibration | None = None
    if recipe.needs_calibration:
        data = gather_calibration(calibration, source.model, source.tokenizer, recipe, progress)
    original = {
        "fingerprint": fingerprint(source.model),
        "bytes": sum(p.numel() * p.element_size() for p in source.model.parameters()),
        "bits_per_weight": torch.finfo(source.model.dtype).bits,
        "parameters": sum(p.numel() for p in source.model.parameters()),
    }
    if coverage.head is not None:
        _untie(source.model, coverage.head)

    activations = None
    if recipe.activations:
        activations = ActivationQuantizer(source.model, list(coverage.schemes), recipe.activations)
    began = time.perf_counter()
    try:
        outcome = quantize_model(
            Job(
                model=source.model,
                stack=stack,
                coverage=coverage,
                recipe=recipe,
                tokens=data.tokens if data else None,
                device=where,
                progress=progress,
                activations=activations,
            )
        )
    except BaseException:
        if activations is not None:
            activations.detach()
        raise
    manifest = build_manifest(
        outcome,
        recipe=recipe.model_dump(mode="json"),
        source=source.name,
        original=original,
        calibration=_describe(data),
        device=str(where),
        amp=str(autocast_dtype(where, recipe.amp) or torch.float32).removeprefix("torch."),
        threads=torch.get_num_threads(),
        seconds=time.perf_counter() - began,
    )
    if target is not None:
        with atomic_folder(target, overwrite) as folder, progress.stage("Writing and checking", 1):
            container.write(folder, source.model, outcome.weights, activations)
            if activations is not None:
                activations.save(folder)
            if source.tokenizer is not None:
                source.tokenizer.save_pretrained(folder)
            container.verify(folder, source.model, outcome.weights, trust_remote_code)
            manifest |= measure_folder(folder, manifest["original"]["parameters"])
            write_manifest(folder, manifest)
    return Quantized(source.model, source.tokenizer, outcome.weights, manifest, target)


def load(
    path: str | Path, *, trust_remote_code: bool = False, allow_pickle: bool = False
) -> tuple[Any, Any | None]:
    """Open a model, quantized or not, for running: `(model, tokenizer)`, on the CPU.

    Raises:
        ModelError: it cannot be opened, or tensors are missing.
    """
    source = _open(path, None, trust_remote_code, allow_pickle, quantized=True)
    return source.model, source.tokenizer


def read_integers(folder: str | Path) -> dict[str, QuantizedWeight]:
    """The integers of every quantized Linear, by full name, from a folder in the format `roundel` or `dense`.

    Raises:
        ModelError: the folder holds none, or they are damaged.
    """
    for name in INTEGER_FILES:
        path = Path(folder).expanduser() / name
        if path.is_file():
            return read_integer_file(path).weights
    raise ModelError(f"no integers in {folder}: a folder written as roundel or dense is wanted")


def evaluate(
    model: ModelOrPath,
    *,
    text: str = "wikitext2",
    reference: ModelOrPath | None = None,
    tokenizer: Any | None = None,
    window: int = 2048,
    limit: int | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a model on held-out text: perplexity, and KL and top-1 agreement against a reference.

    Args:
        model: folder, .gguf file, hub id, or a model in memory.
        text: a local text file, a data set of the papers (wikitext2, ptb, ptb_new, c4, c4_new), or `pydoc`.
        reference: the original model.
        tokenizer: for a model in memory.
        window: tokens per window.
        limit: at most so many windows.
        device: where to compute.
        trust_remote_code: run modeling code that comes with the models.
        progress: is told of every window.

    Returns:
        The figures of `Quality` with model, what of its activations is quantized, reference, text and the convention
        used, as plain data.

    Raises:
        RoundelError: a model or the text cannot be read, or the logits are not finite.
    """
    progress = progress or Progress()
    where = choose_device(device)
    opened = _open(model, tokenizer, trust_remote_code, False, quantized=True)
    original = None if reference is None else _open(reference, None, trust_remote_code, False, quantized=True)
    reader = opened.tokenizer or (original.tokenizer if original else None)
    if reader is None:
        raise ModelError(
            f"{opened.name} comes without a tokenizer: pass tokenizer=, or a folder that has one"
        )
    positions = getattr(opened.model.config, "max_position_embeddings", None)
    if positions is not None and window > positions:
        raise ModelError(
            f"windows of {window} tokens exceed the {positions} positions of {opened.name}: "
            f"a window of {positions} or less is wanted"
        )
    held_out = evaluation_windows(text, reader, window, limit)
    opened.model.to(where)
    if original is not None:
        original.model.to(where)
    with progress.stage(f"Evaluating {Path(opened.name).name}", len(held_out.windows)):
        quality = measure(
            opened.model, held_out.windows, original.model if original else None, progress.advance
        )
    quantizer = attached(opened.model)
    return {
        "model": opened.name,
        "activations": quantizer.words if quantizer else "",
        "reference": original.name if original else None,
        "text": text,
        "convention": held_out.convention,
        **asdict(quality),
    }


def generate(
    model: ModelOrPath,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    tokenizer: Any | None = None,
    trust_remote_code: bool = False,
) -> str:
    """Continue a text greedily; returns prompt and continuation.

    Raises:
        ModelError: the model cannot be opened, or comes without a tokenizer.
    """
    opened = _open(model, tokenizer, trust_remote_code, False, quantized=True)
    if opened.tokenizer is None:
        raise ModelError(f"{opened.name} comes without a tokenizer: one is wanted to read the prompt")
    inputs = opened.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    device = next(opened.model.parameters()).device
    with torch.no_grad():
        ids = opened.model.generate(**inputs.to(device), do_sample=False, max_new_tokens=max_new_tokens)
    return str(opened.tokenizer.decode(ids[0], skip_special_tokens=True))


def _open(
    model: ModelOrPath,
    tokenizer: Any | None,
    trust_remote_code: bool,
    allow_pickle: bool,
    *,
    quantized: bool = False,
) -> SourceModel:
    if isinstance(model, torch.nn.Module):
        model.eval().requires_grad_(False)
        return SourceModel(f"{type(model).__name__} in memory", model, tokenizer)
    if is_container(model):
        if not quantized:
            raise ModelError(f"{model} is quantized already: the original, unquantized model is wanted")
        reader = tokenizer or open_tokenizer(str(Path(model).expanduser()), trust_remote_code)
        opened = SourceModel(str(model), open_container(model, trust_remote_code), reader)
    else:
        opened = open_source(
            str(model), trust_remote_code=trust_remote_code, allow_pickle=allow_pickle, quantized=quantized
        )
    if quantized:
        _attach_activations(opened.model, Path(model).expanduser())
    return SourceModel(opened.name, opened.model, tokenizer or opened.tokenizer)


def _attach_activations(model: Any, folder: Path) -> None:
    """Quantize activations as the folder says, with the code that its weights were tuned under."""
    if attach_saved(model, folder) is not None:
        # A compressed-tensors folder's own hooks would round the same inputs a second time.
        for module in model.modules():
            if hasattr(module, "quantization_scheme"):
                module.quantization_enabled = False


def _layers(coverage: Coverage, recipe: Recipe, model: Any) -> list[Layer]:
    layers = []
    for record in coverage.layers:
        scheme = coverage.schemes.get(record.name)
        if scheme is None:
            continue
        shape = (record.shape[0], record.shape[1])
        bias = getattr(model.get_submodule(record.name), "bias", None) is not None
        permuted = recipe.permutes(scheme, shape[1])
        layers.append(Layer(record.name, record.kind, shape, scheme, bias, recipe.keeps_outliers, permuted))
    return layers


def _untie(model: Any, head: LinearView) -> None:
    """Give a head that shares the embedding's weight a weight of its own."""
    if head.parameter is model.get_input_embeddings().weight:
        head.module.weight = torch.nn.Parameter(head.parameter.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False


def _describe(data: Calibration | None) -> dict[str, Any] | None:
    if data is None:
        return None
    samples, length = data.tokens.shape
    return {
        "source": data.source,
        "samples": samples,
        "tokens_per_sample": length,
        "fingerprint": data.fingerprint,
    }
