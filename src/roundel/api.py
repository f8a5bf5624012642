"""What a Python user imports: quantize, load, evaluate."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from roundel.activations.attach import attached
from roundel.calibration.gather import CalibrationSource
from roundel.engine.journal import Journal, remove_stale
from roundel.engine.plan import Plan
from roundel.engine.streams import StreamHome, StreamOptions
from roundel.engine.trial import Trial
from roundel.errors import ModelError, RecipeError
from roundel.evaluation.defaults import HELD_OUT
from roundel.evaluation.per_token import check_parquet, write_tokens
from roundel.evaluation.predict import check_reach
from roundel.evaluation.quality import Evaluation, summarize
from roundel.evaluation.tasks.results import to_plain
from roundel.evaluation.windows import check_text
from roundel.formats import CONTAINERS, INTEGER_FILES, shard_files
from roundel.formats import read_integers as read_integer_file
from roundel.formats.folder import check_target
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.model.experts import rejoin
from roundel.model.in_memory import check_apart, name_of
from roundel.model.place import Place, locate
from roundel.model.prompt import as_chat, as_text
from roundel.model.text_path import text_model
from roundel.recipe import Recipe
from roundel.records.outcome import LayerRecord
from roundel.system.devices import choose_device
from roundel.system.progress import Progress
from roundel.system.ranks import join
from roundel.system.surroundings import undisturbed
from roundel.workflows.compare import compare_models
from roundel.workflows.evaluate import (
    Conditions,
    ask_original,
    check_tasks,
    judge_conventions,
    measure_tasks,
    measure_texts,
    open_measured,
    read_texts,
)
from roundel.workflows.lending import lent
from roundel.workflows.open import ModelOrPath, ModelRequest, find_model, open_model
from roundel.workflows.quantize import OutputOptions, Run, decide_on, find_readers, stream_device
from roundel.workflows.report import render_again
from roundel.workflows.sweep import sweep_model


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
        no_report: why the written folder has no report, and how to make it; empty where it has one.
    """

    model: Any
    tokenizer: Any | None
    weights: Any
    manifest: dict[str, Any]
    output: Path | None
    no_report: str = ""


@undisturbed
@lent(original=True, changed=True)
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
    blocks: str | None = None,
    held_out: str | None = HELD_OUT,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    allow_quantized: bool = False,
    base: str | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Quantize a causal language model.

    In a script that torchrun started, all its processes call this alike and share the work (docs/large-models.md); the
    first of them writes the output.

    Args:
        model: folder, .gguf file or hub id, of a PEFT adapter too; or a model in memory, which is then changed in
            place.
        recipe: a `Recipe`, the name of a shipped one, or a YAML file.
        calibration: files and names (docs/calibration.md); a list of strings, chats, rows or token ids; or an integer
            tensor `[N, S]`. None: what the recipe says, else text that the model writes itself.
        output: folder to write; None keeps the result in memory.
        tokenizer: for a model in memory; written along, and needed for calibration text.
        device: where blocks compute: auto, cpu, cuda, xpu, mps.
        overwrite: replace an output folder that Roundel wrote; another one, or one with other files in it, is refused.
        restart: forget an interrupted run with the same output folder; else such a run is gone on with.
        stream: with an output folder: blocks are read from safetensors when their turn comes and let go when they
            are finished, so that the model is never in memory as a whole; nor is the result.
        streams: where the activations between blocks are.
        blocks: pattern of the decoder blocks' full names, or of their list's, where they are not found by themselves.
        held_out: with an output folder: text on which the written result is measured against the original, for its
            report (a file or a name, as for `evaluate`); None: it is not measured.
        revision: branch, tag or commit of a hub id, which may also be `id@revision`; None: its main branch.
        trust_remote_code: run modeling code that comes with the model.
        allow_pickle: read pickled checkpoints (with weights_only).
        allow_quantized: take what Roundel wrote for an original, too.
        base: where the model is a PEFT adapter: its base model, instead of the one that the adapter names.
        progress: is told of the work; None is silent.

    Raises:
        RoundelError: bad input or a failed check; nothing is written then.
        Stopped: the work was asked to end; where the result was written already, it stays, and the message says so.
    """
    progress = progress or Progress()
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    if calibration is not None and not recipe.needs_calibration:
        raise RecipeError(
            f"the recipe {recipe.name} reads no calibration data and would ignore it; set start=search, or "
            "leave the calibration out"
        )
    ranks = join()
    where = choose_device(device, ranks)
    with ranks.agreed():
        found = find_model(model, revision, allow_pickle=allow_pickle, progress=progress)
    given = ModelRequest(
        found, tokenizer, calibration, trust_remote_code, allow_pickle, blocks, allow_quantized, base
    )
    if output is None:
        if streams != StreamOptions():
            raise RecipeError("activations go to the disk beside the output: give an output folder")
        home = StreamHome(stream_device(recipe, where), ranks=ranks)
        with ranks.agreed():
            run = Run(given, recipe, where, progress, home)
        done = run.quantize()
        return Quantized(done.model, done.tokenizer, done.weights, done.manifest, None)
    target = Path(output).expanduser()
    if held_out is not None:
        check_text(held_out)
    with ranks.agreed():
        if ranks.first:
            remove_stale(target, progress.say)
            check_target(target, overwrite, found.path if isinstance(found, Place) else None)
    with Journal(target, ranks) as journal:
        home = streams.home(stream_device(recipe, where), journal.folder, ranks)
        writing = OutputOptions(journal, overwrite, restart, stream, streams, held_out)
        with ranks.agreed():
            run = Run(given, recipe, where, progress, home, writing)
        done = run.quantize()
        journal.remove()
    if stream:
        return Quantized(None, done.tokenizer, None, done.manifest, target, done.no_report)
    return Quantized(done.model, done.tokenizer, done.weights, done.manifest, target, done.no_report)


@undisturbed
def sweep(
    model: str | Path,
    recipes: Sequence[Recipe | str | Path],
    output: str | Path,
    *,
    calibration: CalibrationSource | None = None,
    device: str = "auto",
    overwrite: bool = False,
    restart: bool = False,
    streams: StreamOptions = StreamOptions(),
    blocks: str | None = None,
    held_out: str | None = HELD_OUT,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    allow_quantized: bool = False,
    base: str | None = None,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Quantize a model with several recipes, block by block in lockstep, sharing what they have in common.

    Calibration data are read once. Recipes that read the same in the same way share the unquantized model's
    activations, the statistics of its Linears' inputs, and, with `use_quant_input=false`, Hessians. Every result has
    the bytes that `quantize` would give it.

    Args:
        model: folder, .gguf file or hub id.
        recipes: of different names.
        output: a folder; every recipe writes one of its name in it.
        calibration, device, overwrite, restart, streams, blocks, held_out, revision, trust_remote_code, allow_pickle,
            allow_quantized, base, progress: as for `quantize`.

    Returns:
        The manifests by the folders' names, in the order of the recipes.

    Raises:
        RoundelError: bad input or a failed check; recipes that are finished by then stay, and are not done again.
    """
    if isinstance(model, torch.nn.Module):
        raise ModelError(
            f"{name_of(model)} cannot be shared by several recipes, each of which would change it: a folder, a .gguf "
            "file or a hub id is wanted"
        )
    if held_out is not None:
        check_text(held_out)
    chosen = [recipe if isinstance(recipe, Recipe) else Recipe.load(recipe) for recipe in recipes]
    ranks = join()
    with ranks.agreed():
        found = find_model(model, revision, allow_pickle=allow_pickle, progress=progress)
    given = ModelRequest(
        found, None, calibration, trust_remote_code, allow_pickle, blocks, allow_quantized, base
    )
    return sweep_model(
        given,
        chosen,
        Path(output).expanduser(),
        choose_device(device, ranks),
        progress or Progress(),
        ranks,
        streams,
        overwrite=overwrite,
        restart=restart,
        held_out=held_out,
    )


@undisturbed
@lent(original=True)
def plan(
    model: ModelOrPath,
    recipe: Recipe | str | Path = "autoround-w4g128",
    *,
    calibration: CalibrationSource | None = None,
    output: str | Path = "quantized",
    tokenizer: Any | None = None,
    device: str = "auto",
    streams: StreamOptions = StreamOptions(),
    blocks: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_quantized: bool = False,
    base: str | None = None,
    trial: bool = True,
    progress: Progress | None = None,
) -> tuple[Plan, Trial | None]:
    """What `quantize` with these arguments, and `stream=True`, will need; nothing is written.

    Args:
        model, recipe, calibration, output, tokenizer, device, streams, blocks, revision, trust_remote_code,
            allow_quantized, base: as for `quantize`.
        trial: quantize one block on a few samples for a few iterations, to measure time and memory.
        progress: is told of the work.

    Raises:
        RoundelError: as `quantize` would before its work.
    """
    progress = progress or Progress()
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    where = choose_device(device)
    found = find_model(model, revision, progress=progress)
    given = ModelRequest(
        found, tokenizer, calibration, trust_remote_code, False, blocks, allow_quantized, base
    )
    target = Path(output).expanduser()
    with tempfile.TemporaryDirectory() as folder:
        home = streams.home(stream_device(recipe, where), Path(folder))
        run = Run(given, recipe, where, progress, home, stream_with=Path(folder), target=target)
        return run.plan(trial)


@undisturbed
@lent(original=True)
def inspect(
    model: ModelOrPath,
    recipe: Recipe | str | Path = "autoround-w4g128",
    *,
    blocks: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    allow_quantized: bool = False,
    base: str | None = None,
    progress: Progress | None = None,
) -> list[LayerRecord]:
    """What `quantize` with these arguments and an output folder will do with every matrix; no weight is read.

    Args:
        model, recipe, blocks, revision, trust_remote_code, allow_pickle, allow_quantized, base: as for `quantize`.
        progress: is told which clients open the result, and where the model is no full-precision one; None is silent.

    Returns:
        The coverage table: a record for every Linear, every expert and every other matrix, with its decoder block,
        shape, and grid, or with the reason why it stays as it is. What only a run can know is None.

    Raises:
        RoundelError: as `quantize` would before its work.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    found = find_model(model, revision, allow_pickle=allow_pickle, progress=progress)
    looked_at = ModelRequest(
        found, None, None, trust_remote_code, allow_pickle, blocks, allow_quantized, base
    ).look()
    if looked_at.read_from and progress is not None:
        progress.say(f"The original: {looked_at.read_from}")
    _, coverage = decide_on(looked_at.model, recipe, blocks, CONTAINERS[recipe.format], looked_at.extra)
    if progress is not None:
        progress.say(find_readers(coverage, recipe, looked_at.model).words)
    rejoin(looked_at.model)
    return coverage.planned()


@undisturbed
def load(
    path: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> tuple[Any, Any | None]:
    """Open a model, quantized or not, for running: `(model, tokenizer)`, on the CPU.

    Args:
        path: folder, .gguf file or hub id.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run modeling code that comes with the model.
        allow_pickle: read pickled checkpoints.

    Raises:
        ModelError: it cannot be opened, or tensors are missing.
    """
    if isinstance(path, torch.nn.Module):
        raise ModelError(f"{name_of(path)} is open already: a folder, a .gguf file or a hub id is wanted")
    place = find_model(path, revision, allow_pickle=allow_pickle)
    source = open_model(place, None, trust_remote_code, allow_pickle, quantized=True)
    return source.model, source.tokenizer


@undisturbed
def read_integers(folder: str | Path) -> dict[str, QuantizedWeight]:
    """The integers of every quantized Linear, by full name, from a folder or hub id in the format `roundel` or `dense`.

    Raises:
        ModelError: the folder holds none, or they are damaged.
    """
    place = locate(folder)
    for stem in INTEGER_FILES:
        files = shard_files(place.folder, stem)
        if files:
            return {name: w for file in files for name, w in read_integer_file(file).weights.items()}
    raise ModelError(f"no integers in {folder}: a folder written as roundel or dense is wanted")


@undisturbed
@lent()
def evaluate(
    model: ModelOrPath,
    *,
    text: str | Sequence[str] = "wikitext2",
    tasks: Sequence[str] = (),
    reference: ModelOrPath | None = None,
    revision: str | None = None,
    tokenizer: Any | None = None,
    window: int | None = None,
    limit: int | None = None,
    add_bos: bool | None = None,
    encoding: str | None = None,
    fewshot: int | None = None,
    batch_size: int = 1,
    data_dir: str | Path | None = None,
    per_token: str | Path | None = None,
    cache: str | Path | None = None,
    top_k: int | None = None,
    block_by_block: bool | None = None,
    blocks: str | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model: perplexity on held-out text, and how far its predictions are from a reference's.

    Args:
        model: folder, .gguf file, hub id, or a model in memory.
        text: local files, data sets of the papers (wikitext2, ptb, ptb_new, c4, c4_new), or `pydoc`; none is welcome
            where there are tasks.
        tasks: suites (`spqr-zero-shot`, `lrq-commonsense`, `autoround-11`, `mmlu`), and tasks of lm-eval
            (docs/tasks.md).
        reference: the original model.
        revision: of the model, where it is a hub id (`id@revision` names that of any model).
        tokenizer: for a model in memory.
        window: tokens per window; None: 2048, or as many as the models and the text reach.
        limit: at most so many windows of a text, and documents of a task.
        add_bos: every window begins with what the tokenizer puts in front of a text; None: those of local texts do,
            those of the papers' data sets are cut as in the papers.
        encoding: of local text files without a byte order mark; None: UTF-8.
        fewshot: examples before each document of a task; None: each task's own number, 5 for MMLU.
        batch_size: requests of a task in one pass.
        data_dir: folder with local copies of the data sets; None: the hub's.
        per_token: parquet file to write, a row for each prediction.
        cache: folder in which the reference's predictions are kept, for the next model that is measured against it.
        top_k: compare with the reference's so many likeliest tokens and the mass of the rest; None: with all, exactly.
        block_by_block: have a block's weights in memory at a time; None: where the model is larger than memory.
        blocks: pattern of the decoder blocks' names, where they are not found by themselves.
        device: where to compute.
        trust_remote_code: run modeling code that comes with the models.
        progress: is told of every window.

    Raises:
        RoundelError: a model or a text cannot be read, or the logits are not finite.
    """
    check_apart([model, reference])
    conditions = Conditions(
        texts=[text] if isinstance(text, str) else text,
        tasks=tasks,
        fewshot=fewshot,
        batch_size=batch_size,
        window=window,
        limit=limit,
        add_bos=add_bos,
        encoding=encoding,
        data_dir=None if data_dir is None else Path(data_dir).expanduser(),
        device=device,
        block_by_block=block_by_block,
        cache=None if cache is None else Path(cache).expanduser(),
        top_k=top_k,
        blocks=blocks,
        trust_remote_code=trust_remote_code,
        progress=progress or Progress(),
        ranks=join(),
    )
    if reference is None and (cache is not None or top_k is not None):
        raise RecipeError(
            "cache and top_k are for a reference's predictions: pass --reference, or leave them out"
        )
    if per_token is not None:
        if not conditions.texts:
            raise RecipeError("per_token writes the predictions of texts: name a text, or leave it out")
        check_parquet(Path(per_token).expanduser())
    ranks = conditions.ranks
    with ExitStack() as opened:
        with ranks.agreed():
            place = find_model(model, revision, progress=conditions.progress)
            source = open_measured(place, tokenizer, conditions, opened)
            original = None
            if reference is not None:
                original = open_measured(reference, None, conditions, opened, as_original=True)
            reader = source.tokenizer or (original.tokenizer if original else None)
            both = [source, *([original] if original else [])]
            texts = read_texts(reader, both, conditions)
            check_tasks(reader, both, conditions)
            texts = judge_conventions(original or source, texts, conditions)
            asked = None if original is None else ask_original(original, conditions)
        measured = measure_texts(source, texts, asked, conditions)

        def on_tasks() -> list[dict[str, Any]]:
            theirs = None if original is None else measure_tasks(original, reader, conditions)
            return to_plain(measure_tasks(source, reader, conditions), theirs)

        if per_token is not None and ranks.first:
            write_tokens(Path(per_token).expanduser(), texts, measured)
        quantizer = attached(source.model)
        return Evaluation(
            model=source.name,
            activations=quantizer.words if quantizer else "",
            reference=original.name if original else None,
            texts=[summarize(t.name, t.convention, found) for t, found in zip(texts, measured, strict=True)],
            tasks=ranks.tell(on_tasks),
        )


@undisturbed
@lent()
def compare(
    models: Sequence[ModelOrPath],
    reference: ModelOrPath,
    *,
    text: str | Sequence[str] = "wikitext2",
    tasks: Sequence[str] = (),
    tokenizer: Any | None = None,
    window: int | None = None,
    limit: int | None = None,
    add_bos: bool | None = None,
    encoding: str | None = None,
    fewshot: int | None = None,
    batch_size: int = 1,
    data_dir: str | Path | None = None,
    cache: str | Path | None = None,
    top_k: int | None = None,
    block_by_block: bool | None = None,
    blocks: str | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare models with one original, and with each other, on the same windows.

    Args:
        models: folders, .gguf files, hub ids, or models in memory.
        reference: the original, which runs once for all of them.
        tokenizer: for models in memory.
        text, tasks, window, limit, add_bos, encoding, fewshot, batch_size, data_dir, cache, top_k, block_by_block,
            blocks, device, trust_remote_code, progress: as for `evaluate`.

    Returns:
        Plain data: figures of the reference and of each model with 95 % intervals, size, error of each Linear's
        weights, paired differences, and a verdict in plain sentences. `roundel.report.comparison_page` makes a page
        of it.

    Raises:
        RoundelError: a model or a text cannot be read, or logits are not finite.
    """
    conditions = Conditions(
        texts=[text] if isinstance(text, str) else text,
        tasks=tasks,
        fewshot=fewshot,
        batch_size=batch_size,
        window=window,
        limit=limit,
        add_bos=add_bos,
        encoding=encoding,
        data_dir=None if data_dir is None else Path(data_dir).expanduser(),
        device=device,
        block_by_block=block_by_block,
        cache=None if cache is None else Path(cache).expanduser(),
        top_k=top_k,
        blocks=blocks,
        trust_remote_code=trust_remote_code,
        progress=progress or Progress(),
    )
    return compare_models(models, reference, tokenizer, conditions)


@undisturbed
def render_report(folder: str | Path) -> Path:
    """Make `report.html` of an output folder anew from its `report.json`; the path of the page.

    Raises:
        RoundelError: the folder has no readable report, or the libraries that a page needs are not installed.
    """
    return render_again(Path(folder).expanduser())


@undisturbed
@lent()
def generate(
    model: ModelOrPath,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    raw: bool = False,
    revision: str | None = None,
    tokenizer: Any | None = None,
    trust_remote_code: bool = False,
) -> str:
    """Answer a prompt, or continue a text, greedily.

    Args:
        model: folder, quantized or not, .gguf file, hub id, or a model in memory.
        prompt: what a user says, where the tokenizer has a chat template; else the beginning of a text.
        max_new_tokens: at most so many are added.
        raw: the prompt is the beginning of a text, whatever the tokenizer has.
        revision: branch, tag or commit of a hub id.
        tokenizer: for a model in memory.
        trust_remote_code: run modeling code that comes with the model.

    Returns:
        The answer; without a chat template, or raw, prompt and continuation.

    Raises:
        ModelError: the model cannot be opened, comes without a tokenizer, or does not reach so far; no prompt.
    """
    opened = open_model(find_model(model, revision), tokenizer, trust_remote_code, False, quantized=True)
    if opened.tokenizer is None:
        raise ModelError(f"{opened.name} comes without a tokenizer: one is wanted to read the prompt")
    chat = not raw and bool(getattr(opened.tokenizer, "chat_template", None))
    inputs = as_chat(opened.tokenizer, prompt) if chat else as_text(opened.tokenizer, prompt)
    check_reach(opened.model, inputs["input_ids"], max_new_tokens)
    device = next(opened.model.parameters()).device
    with torch.no_grad():
        ids = text_model(opened.model).generate(
            **inputs.to(device), do_sample=False, max_new_tokens=max_new_tokens
        )
    new = ids[0, inputs["input_ids"].shape[1] if chat else 0 :]
    return str(opened.tokenizer.decode(new, skip_special_tokens=True))
