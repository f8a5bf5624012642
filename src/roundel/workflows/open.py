"""Opening what a caller names as a model: a folder, a file, a hub id, a quantized folder, a model in memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from roundel.activations.attach import attach_saved
from roundel.errors import ModelError
from roundel.formats import INTEGER_FILES, open_packed, packed_format, read_integers, shard_files
from roundel.formats.reload import unpack_model
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.model.adapter import Adapter, check_peft, find_adapter, merge_adapter
from roundel.model.beside import left_beside
from roundel.model.checkpoint import is_own, own_output
from roundel.model.in_memory import name_of
from roundel.model.mark import BROKEN_OFF, broken_off, mark_of, put_mark
from roundel.model.place import Place, locate, locate_cached
from roundel.model.source import SourceModel, open_source, open_tokenizer
from roundel.model.storage import InMemory
from roundel.model.text_path import text_model
from roundel.model.turns import in_turn
from roundel.records.manifest import read_manifest
from roundel.runtime.replace import packed_modules
from roundel.system.progress import Progress
from roundel.workflows.packed import DECODED, Packing, open_with_packed

ModelOrPath = str | Path | Place | torch.nn.Module
ModelOrPlace = Place | torch.nn.Module

# What only Roundel's own code opens.
ONLY_ROUNDEL_OPENS = ("roundel", "spqr")
_PACKED = "read from a quantized folder ({kind}), dequantized; the original is no full-precision model"
_MARKED = "read from a model in memory that Roundel had quantized ({words}); the original is no full-precision model"
_ROUNDED = "read from dense weights that Roundel had rounded; the original is no full-precision model"


def find_model(
    model: ModelOrPath,
    revision: str | None = None,
    *,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> ModelOrPlace:
    """The files of a model, or the model itself, if it is in memory.

    Args:
        model: folder, .gguf file, hub id, or a model in memory.
        revision: of a hub id.
        allow_pickle: pickled weights are taken where there are no safetensors.
        progress: gets what is fetched, in words.

    Raises:
        ModelError: there is nothing of that name.
    """
    if isinstance(model, torch.nn.Module):
        if revision is not None:
            raise ModelError(f"a model in memory has no revision {revision}: leave it out")
        return model
    if isinstance(model, Place):
        return model
    place = locate(model, revision, allow_pickle=allow_pickle, progress=progress)
    beside = left_beside(place)
    if beside and progress is not None:
        progress.say(beside)
    return place


def read_integers_of(folder: str | Path) -> dict[str, QuantizedWeight]:
    """The integers in a folder or hub id, by the Linears' full names.

    Raises:
        ModelError: the folder holds none, or they are damaged.
    """
    place = locate(folder)
    for stem in INTEGER_FILES:
        files = shard_files(place.folder, stem)
        if files:
            return {name: w for file in files for name, w in read_integers(file).weights.items()}
    raise ModelError(f"no integers in {folder}: a folder written as roundel or dense is expected")


@in_turn
def open_model(
    model: ModelOrPath,
    tokenizer: Any | None,
    trust_remote_code: bool,
    allow_pickle: bool,
    *,
    quantized: bool = False,
    as_original: bool = False,
    allow_own: bool = False,
    stream_with: Path | None = None,
    blocks: str | None = None,
    base: str | None = None,
    packing: Packing = DECODED,
) -> SourceModel:
    """Open whatever the user named.

    Args:
        model: a place, or what `find_model` finds one for.
        tokenizer: instead of the model's own.
        trust_remote_code: run modeling code that comes with the model.
        allow_pickle: read pickled checkpoints.
        quantized: any quantized model is welcome, and its activations are quantized as its folder says; else one whose
            weights can be read, for these weights alone.
        as_original: so is, of models that others quantized, the latter.
        allow_own: what Roundel wrote is welcome, for its weights alone.
        stream_with: leave blocks of a safetensors checkpoint on disk; a folder for converted tensors.
        blocks: pattern of the blocks' names; None: they are found.
        base: where the model is an adapter: its base model, instead of the one that it names.
        packing: how the weights of a quantized model are held; with `quantized`, of one that is in memory whole.

    Raises:
        ModelError: it cannot be opened.
    """
    if isinstance(model, torch.nn.Module):
        words = "" if quantized else marked(model, allow_own)
        _make_normal(model)
        model.eval().requires_grad_(False)
        opened_from = locate_cached(str(getattr(model, "name_or_path", "") or ""))
        folders = () if opened_from is None else (opened_from.folder,)
        return SourceModel(name_of(model), model, tokenizer, read_from=words, folders=folders)
    place = locate(model, allow_pickle=allow_pickle)
    folder = place.path
    adapter = find_adapter(place, base)
    if adapter is not None:
        check_peft(adapter)
        return _merged(adapter, tokenizer, trust_remote_code, allow_pickle, allow_own or quantized, blocks)
    if base is not None:
        raise ModelError(f"{model} is no adapter, so there is no base to name: leave --base (base=) out")
    own = is_own(folder)
    if own and not quantized and not allow_own:
        raise own_output(place.name)
    held = None
    if quantized and stream_with is None:
        held = open_with_packed(place, packing, tokenizer, trust_remote_code)
    packed = None
    if held is None and (quantized or packed_format(folder) in ONLY_ROUNDEL_OPENS):
        streamed = stream_with is not None
        packed = open_packed(
            folder, trust_remote_code, streamed=streamed, weights_only=as_original and not own
        )
    if held is not None:
        opened = held
    elif packed is not None:
        reader = tokenizer or open_tokenizer(folder, trust_remote_code)
        words = "" if quantized else _PACKED.format(kind=packed_format(folder))
        opened = SourceModel(
            place.name, packed.model, reader, packed.storage or InMemory(), packed.extra, read_from=words
        )
    else:
        opened = open_source(
            place,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            quantized=quantized,
            as_original=as_original,
            allow_own=allow_own,
            stream_with=stream_with,
            blocks=blocks,
            tokenizer=tokenizer,
        )
        if own and not quantized and not opened.read_from:
            opened = replace(opened, read_from=_ROUNDED)
    if quantized and text_model(opened.model) is not opened.model:
        unpack_model(opened.model)  # which transformers does when the whole of it runs
    if quantized:
        _attach_activations(opened.model, folder)
    if own and stream_with is None:
        put_own_mark(opened.model, folder)
    return replace(
        opened,
        place=place,
        folders=() if place.is_gguf else (place.folder,),
    )


def marked(model: torch.nn.Module, allow_own: bool) -> str:
    """What Roundel had made of a model in memory, where it is taken as an original; empty where it is one."""
    if packed_modules(model):
        raise ModelError(
            f"{name_of(model)} computes with packed integers, and weights are expected: name its folder, or open it "
            "with packed=False"
        )
    words = mark_of(model)
    if words and not allow_own:
        raise broken_off(name_of(model)) if words == BROKEN_OFF else own_output(name_of(model))
    return _MARKED.format(words=words) if words else ""


def _make_normal(model: torch.nn.Module) -> None:
    """Put copies in place of tensors that were made in `torch.inference_mode()`, which no gradient may pass.

    Tied ones stay tied.
    """
    copies: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_inference():
                copy = copies.setdefault(
                    id(parameter), torch.nn.Parameter(parameter.clone(), requires_grad=False)
                )
                module._parameters[name] = copy  # type: ignore[assignment]
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_inference():
                module._buffers[name] = copies.setdefault(id(buffer), buffer.clone())


def _merged(
    adapter: Adapter,
    tokenizer: Any | None,
    trust_remote_code: bool,
    allow_pickle: bool,
    allow_own: bool,
    blocks: str | None,
) -> SourceModel:
    """An adapter and its base as one model, in memory."""
    try:
        place = locate(adapter.base, allow_pickle=allow_pickle)
    except ModelError as error:
        raise _unopened(adapter, error) from error
    if find_adapter(place, None) is not None:
        raise ModelError(
            f"the base of {adapter.name}, {adapter.base}, is an adapter itself: a whole model is "
            "expected; merge that one first, and name the result with --base (base=)"
        )
    try:
        opened = open_model(place, None, trust_remote_code, allow_pickle, allow_own=allow_own, blocks=blocks)
    except ModelError as error:
        raise _unopened(adapter, error) from error
    own = open_tokenizer(adapter.folder, trust_remote_code)
    words = f"{adapter.summary}, which was {opened.read_from}" if opened.read_from else adapter.summary
    return SourceModel(
        adapter.name,
        merge_adapter(opened.model, adapter, allow_pickle=allow_pickle),
        tokenizer or own or opened.tokenizer,
        InMemory(),
        opened.extra,
        read_from=words,
        parents={"base": adapter.base, "adapter": adapter.name},
        folders=(*opened.folders, adapter.folder),
    )


def _unopened(adapter: Adapter, error: ModelError) -> ModelError:
    return ModelError(
        f"{adapter.name} is an adapter, and its base model cannot be opened: {error}. Another place of the base "
        "can be named with --base (base=)"
    )


def put_own_mark(model: torch.nn.Module, folder: Path) -> None:
    """What is opened from a folder that Roundel wrote is known as such in memory, too."""
    try:
        manifest = read_manifest(folder)
    except ModelError:
        return  # who needs the manifest itself will say so
    layers = [layer["name"] for layer in manifest["layers"] if layer.get("bits") is not None]
    put_mark(model, describe_result(manifest), layers)


def describe_result(manifest: dict[str, Any]) -> str:
    """A run's result in a few words."""
    recipe = manifest["recipe"]
    return f"{recipe.get('method', recipe['name'])}, {manifest['bits_per_weight']:.3f} bits per weight"


def _attach_activations(model: Any, folder: Path) -> None:
    """Quantize activations as the folder says, with the code that its weights were tuned under."""
    if attach_saved(model, folder) is not None:
        # A compressed-tensors folder's own hooks would round the same inputs a second time.
        for module in model.modules():
            if hasattr(module, "quantization_scheme"):
                module.quantization_enabled = False
