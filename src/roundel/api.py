"""What a Python user imports: quantize, load, evaluate."""

import time
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from roundel.activations.attach import ActivationQuantizer, attach_saved, attached
from roundel.calibration.gather import Calibration, CalibrationSource, gather_calibration
from roundel.engine.coverage import Coverage, decide
from roundel.engine.devices import autocast_dtype, choose_device
from roundel.engine.journal import Journal
from roundel.engine.streams import StreamHome, StreamOptions
from roundel.engine.walk import Job, quantize_model
from roundel.errors import ModelError, RecipeError
from roundel.evaluation.measure import measure
from roundel.evaluation.windows import evaluation_windows
from roundel.formats import (
    CONTAINERS,
    INTEGER_FILES,
    Container,
    Content,
    Layer,
    Piece,
    is_container,
    open_container,
    shard_files,
)
from roundel.formats import read_integers as read_integer_file
from roundel.formats.folder import atomic_folder, check_target
from roundel.formats.shards import SHARD_BYTES
from roundel.grid import QuantizedWeight
from roundel.model.blocks import find_blocks
from roundel.model.linears import LinearView
from roundel.model.source import SourceModel, fingerprint, open_source, open_tokenizer
from roundel.model.storage import InMemory
from roundel.progress import Progress
from roundel.recipe import Recipe
from roundel.report.contents import measure_folder
from roundel.report.manifest import build_manifest, versions, write_manifest

ModelOrPath = str | Path | torch.nn.Module

# Keys of a recipe that decide no integer.
_NO_MATTER = ("name", "description", "format")


@dataclass(frozen=True)
class Quantized:
    """What `quantize` returns.

    Attributes:
        model: the model with dequantized weights in its Linears; activations are quantized as the recipe says.
            None where the blocks were streamed (`load` opens the output).
        tokenizer: the model's, or None.
        weights: the integers of every quantized Linear, by full name. None where the blocks were streamed
            (`read_integers` reads those of some formats).
        manifest: everything about the run as plain data.
        output: the written folder, or None.
    """

    model: Any
    tokenizer: Any | None
    weights: Any
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
    restart: bool = False,
    stream: bool = False,
    streams: StreamOptions = StreamOptions(),
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
        restart: forget an interrupted run with the same output folder; else such a run is gone on with.
        stream: with an output folder: blocks are read from safetensors when their turn comes and let go when they
            are finished, so that the model is never in memory as a whole; nor is the result.
        streams: where the activations between blocks are.
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
    where = choose_device(device)
    given = _Given(model, tokenizer, calibration, trust_remote_code, allow_pickle)
    if output is None:
        if streams != StreamOptions():
            raise RecipeError("activations go to the disk beside the output: give an output folder")
        return _quantize(given, recipe, where, progress, StreamHome(where))
    target = Path(output).expanduser()
    check_target(target, overwrite)
    with Journal(target) as journal:
        home = streams.home(where if not recipe.low_gpu_mem_usage else torch.device("cpu"), journal.folder)
        run = _quantize(given, recipe, where, progress, home, _Writing(journal, overwrite, restart, stream))
        journal.remove()
    return run


@dataclass(frozen=True)
class _Given:
    """What a caller gave."""

    model: ModelOrPath
    tokenizer: Any | None
    calibration: CalibrationSource | None
    trust_remote_code: bool
    allow_pickle: bool

    def open(self, stream_with: Path | None = None) -> SourceModel:
        return _open(
            self.model, self.tokenizer, self.trust_remote_code, self.allow_pickle, stream_with=stream_with
        )


@dataclass(frozen=True)
class _Writing:
    """How a run writes."""

    journal: Journal
    overwrite: bool
    restart: bool
    stream: bool


def _quantize(
    given: _Given,
    recipe: Recipe,
    where: torch.device,
    progress: Progress,
    home: StreamHome,
    writing: _Writing | None = None,
) -> Quantized:
    began = time.perf_counter()
    streamed = writing is not None and writing.stream
    source = given.open(writing.journal.folder / "converted" if writing and writing.stream else None)
    model = source.model
    if attached(model) is not None:
        raise ModelError(f"{source.name} is quantized already: the original, unquantized model is wanted")
    stack = find_blocks(model)
    coverage = decide(model, stack, recipe)
    container = CONTAINERS[recipe.format]
    if writing is not None:
        layers = _layers(coverage, recipe, model)
        container.check(layers, model.dtype, recipe.activations, model.config)
    data: Calibration | None = None
    if recipe.needs_calibration:
        author = source if isinstance(source.storage, InMemory) else None
        data = gather_calibration(
            given.calibration,
            model,
            source.tokenizer,
            recipe,
            progress,
            lambda: (author or given.open()).model,
        )
    original = {
        "fingerprint": fingerprint(model, source.storage),
        "bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "bits_per_weight": torch.finfo(model.dtype).bits,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    amp = str(autocast_dtype(where, recipe.amp) or torch.float32).removeprefix("torch.")
    if writing is not None:
        identity = {
            "recipe": {k: v for k, v in recipe.model_dump(mode="json").items() if k not in _NO_MATTER},
            "model": original["fingerprint"],
            "calibration": data.fingerprint if data else None,
            "device": where.type,
            "amp": amp,
            "threads": torch.get_num_threads(),
            "streams": str(home.dtype).removeprefix("torch.") if home.on_disk else "memory",
            "versions": versions(),
        }
        writing.journal.begin(identity, writing.restart)
    if coverage.head is not None:
        _untie(model, coverage.head)

    activations = None
    if recipe.activations:
        activations = ActivationQuantizer(model, list(coverage.schemes), recipe.activations)
    job = Job(
        model=model,
        stack=stack,
        coverage=coverage,
        recipe=recipe,
        tokens=data.tokens if data else None,
        device=where,
        progress=progress,
        home=home,
        storage=source.storage,
        journal=writing.journal if writing else None,
        keep=not streamed,
        activations=activations,
    )
    try:
        outcome = quantize_model(job)
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
        amp=amp,
        threads=torch.get_num_threads(),
        seconds=time.perf_counter() - began,
    )
    if writing is not None:
        _write(writing, container, source, job, manifest, given.trust_remote_code)
    target = writing.journal.target if writing else None
    if streamed:
        return Quantized(None, source.tokenizer, None, manifest, target)
    return Quantized(model, source.tokenizer, outcome.weights, manifest, target)


def _write(
    writing: _Writing,
    container: Container,
    source: SourceModel,
    job: Job,
    manifest: dict[str, Any],
    trust_remote_code: bool,
) -> None:
    """Write the output folder from the journal, check it, and let it appear."""
    journal, size = writing.journal, manifest["original"]["bytes"]
    content = Content(
        model=source.model,
        schemes=job.coverage.schemes,
        read_pieces=lambda: chain(journal.pieces(), [_outside(job)]),
        activations=job.activations,
        whole=job.keep or size <= SHARD_BYTES,
    )
    with (
        job.progress.stage("Writing and checking", 1),
        atomic_folder(journal.target, writing.overwrite, journal.folder) as folder,
    ):
        container.write(folder, content)
        if job.activations is not None:
            job.activations.save(folder)
        if source.tokenizer is not None:
            source.tokenizer.save_pretrained(folder)
        container.verify(folder, content, trust_remote_code)
        manifest |= measure_folder(folder, manifest["original"]["parameters"])
        write_manifest(folder, manifest)


def _outside(job: Job) -> Piece:
    """What is in no block, and not the quantized head."""
    head = job.coverage.head
    journaled = (f"{job.stack.name}.", f"{head.name}." if head else f"{job.stack.name}.")
    state = job.model.state_dict().items()
    others = {name: t.detach().cpu().contiguous() for name, t in state if not name.startswith(journaled)}
    return Piece(others=others)


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
    for stem in INTEGER_FILES:
        files = shard_files(Path(folder).expanduser(), stem)
        if files:
            return {name: w for file in files for name, w in read_integer_file(file).weights.items()}
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
    stream_with: Path | None = None,
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
            str(model),
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            quantized=quantized,
            stream_with=stream_with,
        )
    if quantized:
        _attach_activations(opened.model, Path(model).expanduser())
    return replace(opened, tokenizer=tokenizer or opened.tokenizer)


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
