"""What a Python user imports: quantize, load, evaluate; what is done with finished folders is in folders.py."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch

from roundel.calibration.gather import CalibrationSource
from roundel.engine.plan import Plan
from roundel.engine.streams import StreamOptions
from roundel.engine.trial import Trial
from roundel.errors import ModelError
from roundel.evaluation.defaults import HELD_OUT
from roundel.evaluation.quality import Evaluation
from roundel.model.in_memory import check_apart, name_of
from roundel.model.source import SourceModel
from roundel.model.streamer import Speed
from roundel.recipe import Recipe
from roundel.records.outcome import LayerRecord
from roundel.runtime.modes import Mode
from roundel.system.devices import choose_device
from roundel.system.ranks import init_ranks
from roundel.system.surroundings import undisturbed
from roundel.workflows.arguments import ModelArguments, ModelOptions, spelled_out
from roundel.workflows.bench.options import BenchArguments, BenchOptions
from roundel.workflows.bench.turns import bench_models
from roundel.workflows.chat import hold_chat
from roundel.workflows.compare import compare_models
from roundel.workflows.destination import WriteOptions
from roundel.workflows.evaluate import evaluate_model
from roundel.workflows.evaluation_options import EvaluationArguments, EvaluationOptions
from roundel.workflows.generate import generate_text
from roundel.workflows.hub_target import hub_target
from roundel.workflows.inspect import inspect_request
from roundel.workflows.lending import lent
from roundel.workflows.open import ModelOrPath, find_model, open_model
from roundel.workflows.packed import Packing
from roundel.workflows.plan import plan_request
from roundel.workflows.quantize import quantize_request
from roundel.workflows.request import ModelRequest
from roundel.workflows.run import Quantized as Quantized
from roundel.workflows.sweep import sweep_request
from roundel.workflows.within import parse_limit


@undisturbed
@lent(original=True, changed=True)
@spelled_out(ModelOptions)
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
    like: str | Path | None = None,
    held_out: str | None = HELD_OUT,
    within: float | str | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
    **opening: Unpack[ModelArguments],
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
        like: a GGUF file that llama.cpp's converter made of the same model: a GGUF output gets its metadata and names.
        held_out: with an output folder: text on which the written result is measured against the original, for its
            report (a file or a name, as for `evaluate`); None: it is not measured.
        within: how long the run may take: seconds, or `20m`, `1.5h`. What one block takes on this machine decides the
            recipe's iters, nsamples, seqlen and batch_size then; `None`: they are what the recipe says.
        push_to_hub: with an output folder: repository of the hub to which it is uploaded at the end, as for `push`, by
            the token that huggingface_hub finds. That this may be done is seen to before the work.
        private: that repository is private, where it is made.

    Raises:
        RoundelError: bad input or a failed check; nothing is written then.
        Stopped: the work was asked to end; where the result was written already, it stays, and the message says so.
    """
    chosen, ranks = _recipe(recipe), init_ranks()
    where = choose_device(device, ranks)
    with ranks.raise_together():
        hub = hub_target(push_to_hub, private, writes=output is not None, first=ranks.first)
        request = ModelRequest.find(model, ModelOptions(**opening), tokenizer, calibration)
    options = WriteOptions(
        overwrite=overwrite,
        restart=restart,
        stream=stream,
        streams=streams,
        like=_path(like),
        held_out=held_out,
        hub=hub,
        within=None if within is None else parse_limit(within),
    )
    return quantize_request(request, chosen, _path(output), where, ranks, options)


@undisturbed
@spelled_out(ModelOptions)
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
    like: str | Path | None = None,
    held_out: str | None = HELD_OUT,
    **opening: Unpack[ModelArguments],
) -> dict[str, dict[str, Any]]:
    """Quantize a model with several recipes, block by block in lockstep, sharing what they have in common.

    Calibration data are read once. Recipes that read the same in the same way share the unquantized model's
    activations, the statistics of its Linears' inputs, and, with `use_quant_input=false`, Hessians. Every result has
    the bytes that `quantize` would give it.

    Args:
        model: folder, .gguf file or hub id.
        recipes: of different names.
        output: a folder; every recipe writes one of its name in it.
        calibration, device, overwrite, restart, streams, like, held_out: as for `quantize`.

    Returns:
        The manifests by the folders' names, in the order of the recipes.

    Raises:
        RoundelError: bad input or a failed check; recipes that are finished by then stay, and are not done again.
    """
    if isinstance(model, torch.nn.Module):
        raise ModelError(
            f"{name_of(model)} cannot be shared by several recipes, each of which would change it: a folder, a .gguf "
            "file or a hub id is expected"
        )
    chosen, ranks = [_recipe(recipe) for recipe in recipes], init_ranks()
    where = choose_device(device, ranks)
    with ranks.raise_together():
        request = ModelRequest.find(model, ModelOptions(**opening), None, calibration)
    options = WriteOptions(
        overwrite=overwrite,
        restart=restart,
        stream=True,
        streams=streams,
        like=_path(like),
        held_out=held_out,
    )
    return sweep_request(request, chosen, Path(output).expanduser(), where, ranks, options)


@undisturbed
@lent(original=True)
@spelled_out(ModelOptions)
def plan(
    model: ModelOrPath,
    recipe: Recipe | str | Path = "autoround-w4g128",
    *,
    calibration: CalibrationSource | None = None,
    output: str | Path = "quantized",
    tokenizer: Any | None = None,
    device: str = "auto",
    streams: StreamOptions = StreamOptions(),
    trial: bool = True,
    within: float | str | None = None,
    **opening: Unpack[ModelArguments],
) -> tuple[Plan, Trial | None]:
    """What `quantize` with these arguments, and `stream=True`, will need; nothing is written.

    Args:
        model, recipe, calibration, output, tokenizer, device, streams: as for `quantize`.
        trial: quantize one block on a few samples for a few iterations, to measure time and memory.
        within: as for `quantize`; what it chooses is said to `progress`.

    Raises:
        RoundelError: as `quantize` would before its work.
    """
    chosen, where = _recipe(recipe), choose_device(device)
    request = ModelRequest.find(model, ModelOptions(**opening), tokenizer, calibration)
    limit = None if within is None else parse_limit(within)
    return plan_request(request, chosen, Path(output).expanduser(), where, streams, trial=trial, within=limit)


@undisturbed
@lent(original=True)
@spelled_out(ModelOptions)
def inspect(
    model: ModelOrPath,
    recipe: Recipe | str | Path = "autoround-w4g128",
    **opening: Unpack[ModelArguments],
) -> list[LayerRecord]:
    """What `quantize` with these arguments and an output folder will do with every matrix; no weight is read.

    Args:
        model, recipe: as for `quantize`.

    Returns:
        The coverage table: a record for every Linear, every expert and every other matrix, with its decoder block,
        shape, and grid, or with the reason why it stays as it is. What only a run can know is None.

    Raises:
        RoundelError: as `quantize` would before its work.
    """
    chosen = _recipe(recipe)
    return inspect_request(ModelRequest.find(model, ModelOptions(**opening)), chosen)


@undisturbed
def load(
    path: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    packed: bool | None = None,
    mode: Mode = "exact",
) -> tuple[Any, Any | None]:
    """Open a model, quantized or not, for running: `(model, tokenizer)`, on the CPU.

    Args:
        path: folder, .gguf file or hub id.
        revision: branch, tag or commit of a hub id.
        trust_remote_code: run modeling code that comes with the model.
        allow_pickle: read pickled checkpoints.
        packed: quantized weights stay packed in memory and compute so (docs/runtime.md); False: they are decoded; None:
            packed where the model is stored in integers and this installation has kernels for them.
        mode: of packed weights: `exact` multiplies as with decoded ones, `fast` rounds activations to 8 bits.

    Raises:
        ModelError: it cannot be opened, tensors are missing, or `packed` is wanted of weights that are no integers.
    """
    if isinstance(path, torch.nn.Module):
        raise ModelError(f"{name_of(path)} is open already: a folder, a .gguf file or a hub id is expected")
    source = _opened(path, Packing(packed, mode), revision, None, trust_remote_code, allow_pickle)
    return source.model, source.tokenizer


@undisturbed
@lent()
@spelled_out(EvaluationOptions)
def evaluate(
    model: ModelOrPath,
    *,
    reference: ModelOrPath | None = None,
    revision: str | None = None,
    tokenizer: Any | None = None,
    per_token: str | Path | None = None,
    **how: Unpack[EvaluationArguments],
) -> Evaluation:
    """Measure a model: perplexity on held-out text, and how far its predictions are from a reference's.

    Args:
        model: folder, .gguf file, hub id, or a model in memory.
        reference: the original model.
        revision: of the model, where it is a hub id (`id@revision` names that of any model).
        tokenizer: for a model in memory.
        per_token: parquet file to write, a row for each prediction.

    Raises:
        RoundelError: a model or a text cannot be read, or the logits are not finite.
    """
    check_apart([model, reference])
    options = EvaluationOptions(**how, ranks=init_ranks())
    return evaluate_model(
        model, reference, options, revision=revision, tokenizer=tokenizer, per_token=_path(per_token)
    )


@undisturbed
@lent()
@spelled_out(EvaluationOptions)
def compare(
    models: Sequence[ModelOrPath],
    reference: ModelOrPath,
    *,
    tokenizer: Any | None = None,
    **how: Unpack[EvaluationArguments],
) -> dict[str, Any]:
    """Compare models with one original, and with each other, on the same windows.

    Args:
        models: folders, .gguf files, hub ids, or models in memory.
        reference: the original, which runs once for all of them.
        tokenizer: for models in memory.

    Returns:
        Plain data: figures of the reference and of each model with 95 % intervals, size, error of each Linear's
        weights, paired differences, and a verdict in plain sentences. `roundel.report.comparison_page` makes a page
        of it.

    Raises:
        RoundelError: a model or a text cannot be read, or logits are not finite.
    """
    return compare_models(models, reference, tokenizer, EvaluationOptions(**how))


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
    packed: bool | None = None,
    mode: Mode = "exact",
    on_text: Callable[[str], object] | None = None,
    on_end: Callable[[Speed], object] | None = None,
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
        packed, mode: as for `load`.
        on_text: gets the result piece by piece, as it comes; the pieces together are what is returned.
        on_end: gets how many tokens were read and made, and in which time.

    Returns:
        The answer; without a chat template, or raw, prompt and continuation.

    Raises:
        ModelError: the model cannot be opened, comes without a tokenizer, or does not reach so far; no prompt.
    """
    source = _opened(model, Packing(packed, mode), revision, tokenizer, trust_remote_code)
    return generate_text(source, prompt, max_new_tokens, raw=raw, on_text=on_text, on_end=on_end)


@undisturbed
@lent()
def chat(
    model: ModelOrPath,
    turns: Iterable[str],
    *,
    max_new_tokens: int = 512,
    revision: str | None = None,
    tokenizer: Any | None = None,
    trust_remote_code: bool = False,
    packed: bool | None = None,
    mode: Mode = "exact",
    on_text: Callable[[str], object] | None = None,
    on_end: Callable[[Speed], object] | None = None,
) -> list[dict[str, str]]:
    """Hold a conversation, through the tokenizer's chat template, greedily.

    Args:
        model: folder, quantized or not, .gguf file, hub id, or a model in memory.
        turns: what a user says. The next is asked for when the last is answered, so it may depend on the answer.
        max_new_tokens: at most so many in an answer, and no more than the model's positions leave.
        revision: branch, tag or commit of a hub id.
        tokenizer: for a model in memory.
        trust_remote_code: run modeling code that comes with the model.
        packed, mode: as for `load`.
        on_text: gets the answers piece by piece, as they come.
        on_end: gets, after each answer, how many tokens were read and made for it, and in which time.

    Returns:
        The conversation, `{"role": "user" or "assistant", "content": text}` for every turn.

    Raises:
        ModelError: the model cannot be opened, comes without a tokenizer or a chat template, or does not reach so far.
    """
    source = _opened(model, Packing(packed, mode), revision, tokenizer, trust_remote_code)
    return hold_chat(source, turns, max_new_tokens, on_text=on_text, on_end=on_end)


@undisturbed
@spelled_out(BenchOptions)
def bench(models: Sequence[str | Path], **how: Unpack[BenchArguments]) -> dict[str, Any]:
    """How fast models run on this machine's CPU, and what memory they take, side by side.

    Each is opened in a process of its own, as `load` does, and stays open: memory for all of them at a time is needed.
    They are timed in turns, with one sequence of tokens that are the same every time; the end of a text ends nothing.

    Args:
        models: folders, quantized or not, .gguf files or hub ids.

    Returns:
        Plain data: `threads`, `prompt_tokens`, `context_tokens`, `new_tokens`, `rounds`, `versions`; `bandwidth`, of
        reading main memory with as many threads, in bytes per second; and in `models` for each, in the order given,
        `name`, `path`, `decode` and `prefill` in tokens per second; `bytes_per_token`, of weights that a new token
        reads, as they are stored in memory; `bandwidth_share`, of these bytes times `decode` in `bandwidth`;
        `load_seconds`; `memory` of its process in bytes: `before_load` (libraries alone), `loaded`, and `peak` of all.
        What was timed is `median`, `low` and `high` over the rounds.

    Raises:
        RecipeError: no model, one of them twice, or a number below 1.
        ModelError: one cannot be opened, reaches less far than is asked for, or takes more memory than there is.
        NonFiniteError: logits are NaN or infinite.
    """
    return bench_models(models, BenchOptions(**how))


def _opened(
    model: ModelOrPath,
    packing: Packing,
    revision: str | None,
    tokenizer: Any | None,
    trust_remote_code: bool,
    allow_pickle: bool = False,
) -> SourceModel:
    """A model that is to run, quantized or not."""
    place = find_model(model, revision, allow_pickle=allow_pickle)
    return open_model(place, tokenizer, trust_remote_code, allow_pickle, quantized=True, packing=packing)


def _recipe(recipe: Recipe | str | Path) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given).expanduser()
