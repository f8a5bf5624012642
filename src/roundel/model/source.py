"""Opening a source model: a folder, or a GGUF file (place.py finds those of a hub id).

transformers does the reading; this file decides what may be read and turns every way in which it can fail
into one clear error.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from pickle import UnpicklingError
from types import TracebackType
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from roundel.errors import ModelError, NonFiniteError
from roundel.formatting import kind_and_line
from roundel.model.beside import without_adapters
from roundel.model.blocks import find_blocks
from roundel.model.checkpoint import check_folder, is_own, own_output
from roundel.model.classes import auto_class
from roundel.model.extra_tensors import ExtraTensors, check_blocks, find_extra_tensors
from roundel.model.place import Place, locate
from roundel.model.storage import InMemory, Storage, device_map, take_off_hooks
from roundel.model.stored import StoredCheckpoint
from roundel.model.stored.choice import quantization_of
from roundel.model.stored.finding import find_stored
from roundel.model.stored.loading import load_stored
from roundel.model.stored_types import PLAIN_TYPES, prevailing_type
from roundel.model.text_path import text_model
from roundel.model.turns import empty_weights, in_turn
from roundel.system.finite import all_finite

# What transformers raises at a config or a GGUF header that makes no sense.
_SENSELESS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    ImportError,
    StrictDataclassError,
    struct.error,
)
# Any of them makes a folder one with a tokenizer.
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)


@dataclass
class SourceModel:
    """An opened model.

    Attributes:
        name: as it was named.
        model: its modules.
        tokenizer: None where the source has none.
        storage: where its blocks' weights are.
        extra: tensors of its checkpoint for which its class has no place.
        read_from: where it was no full-precision model: from what it was read, in a sentence.
        parents: where it was made of others: which they are, by what they were to it.
        place: where its files are; None of a model in memory.
        folders: with what goes along with its weights, the one with its config first.
    """

    name: str
    model: Any
    tokenizer: Any | None
    storage: Storage = field(default_factory=InMemory)
    extra: ExtraTensors = field(default_factory=ExtraTensors)
    read_from: str = ""
    parents: dict[str, str] = field(default_factory=dict)
    place: Place | None = None
    folders: tuple[Path, ...] = ()


@in_turn
def open_source(
    source: str | Path | Place,
    *,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    quantized: bool = False,
    as_original: bool = False,
    allow_own: bool = False,
    stream_with: Path | None = None,
    blocks: str | None = None,
    tokenizer: Any | None = None,
) -> SourceModel:
    """Open a causal language model on the CPU, in the type in which it is stored; a quantized one dequantized.

    Args:
        source: folder with config.json and safetensors, a .gguf file (read into fp32), or a hub id of one.
        trust_remote_code: run modeling code that comes with the model.
        allow_pickle: read `pytorch_model.bin`, with `weights_only`.
        quantized: open whatever transformers runs, dequantized or not (to measure or to run it, not to quantize it).
        as_original: of a quantized model, what counts is its weights, not how it quantizes their inputs.
        allow_own: open what Roundel wrote, too.
        stream_with: leave the blocks of a safetensors checkpoint on disk; a folder for tensors that are not in the
            checkpoint as the model has them. GGUF and pickled files are read whole all the same.
        blocks: pattern of the decoder blocks' names; None: they are found.
        tokenizer: instead of the model's own, which is not opened then.

    Raises:
        ModelError: with what was found, what is expected and what to do.
    """
    place = locate(source, allow_pickle=allow_pickle)
    source, location = place.name, str(place.folder)
    where: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if place.gguf is not None:
        where["gguf_file"] = place.gguf.name
        if not (quantized or allow_own) and is_own(place.path):
            raise own_output(place.name)
    else:
        _check(place, allow_pickle, allow_own=quantized or allow_own)

    config = _open_config(source, location, where)
    runs = quantized and (not as_original or is_own(place.path))
    stored = None
    if not place.is_gguf:
        stored = find_stored(
            source, place.folder, config, trust_transformers=quantized, weights_only=not runs
        )
    if not quantized and config.dtype not in (None, *PLAIN_TYPES):
        raise ModelError(
            f"{source} is stored in {config.dtype}: bfloat16, float16 or float32 is expected; convert it first"
        )
    if stored is not None:
        return _open_stored(
            place, config, stored, trust_remote_code, stream_with is not None, blocks, tokenizer
        )
    options: dict[str, Any] = {"use_safetensors": None if allow_pickle else True}
    if stream_with is not None and not place.is_gguf and not allow_pickle:
        skeleton = _skeleton(source, config, trust_remote_code)
        options["device_map"] = device_map(skeleton, find_blocks(skeleton, blocks))
        options["offload_folder"] = str(stream_with)
    model = _open_weights(source, location, config, where, options)
    extra = ExtraTensors()
    if not quantized and not place.is_gguf:  # packed Linears have no weights to find blocks by
        extra = _find_extra(place, model, blocks, allow_pickle)
    storage: Storage = take_off_hooks(model) if "device_map" in options else InMemory()
    reader = tokenizer or open_tokenizer(location, **where)
    return SourceModel(source, model, reader, storage, extra)


@in_turn
def open_skeleton(
    source: str | Path | Place,
    *,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    allow_own: bool = False,
    blocks: str | None = None,
) -> SourceModel:
    """A causal language model without its weights, and without its tokenizer: names, classes, shapes and types.

    Of a GGUF file, which says little of them, the whole model.

    Args:
        source, trust_remote_code, allow_pickle, allow_own, blocks: as for `open_source`.

    Raises:
        ModelError: as `open_source` would.
    """
    place = locate(source, allow_pickle=allow_pickle)
    if place.is_gguf:
        return open_source(place)
    _check(place, allow_pickle, allow_own=allow_own)
    config = _open_config(place.name, str(place.folder), {"trust_remote_code": trust_remote_code})
    stored = find_stored(place.name, place.folder, config)
    model = _skeleton(place.name, config, trust_remote_code)
    extra = _find_extra(place, model, blocks, allow_pickle, stored)
    words = "" if stored is None else stored.summary
    return SourceModel(place.name, model, None, extra=extra, read_from=words)


@in_turn
def open_absent(place: Place, *, trust_remote_code: bool = False) -> SourceModel:
    """A model of a quantized checkpoint, or of a GGUF file, whose parameters are absent.

    Args:
        place: of a folder or file that `open_source` would open; Roundel's own output is welcome.
        trust_remote_code: run modeling code that comes with the model.

    Returns:
        The model; its storage has the parameters of a checkpoint, dequantized when they are read, and of a GGUF file
        none.

    Raises:
        ModelError: as `open_source` would.
    """
    location = str(place.folder)
    where: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if place.gguf is not None:
        where["gguf_file"] = place.gguf.name
        config = _open_config(place.name, location, where)
        config.dtype = torch.float32
        model = _skeleton(place.name, config, trust_remote_code, with_buffers=True)
        model.eval().requires_grad_(False)
        return SourceModel(place.name, model, open_tokenizer(location, **where))
    _check(place, False, allow_own=True)
    config = _open_config(place.name, location, where)
    stored = find_stored(place.name, place.folder, config)
    assert stored is not None  # the caller has seen that it is quantized
    return _open_stored(place, config, stored, trust_remote_code, True, None, with_extra=False)


def _check(place: Place, allow_pickle: bool, *, allow_own: bool) -> None:
    if not allow_own and is_own(place.folder):
        raise own_output(place.name)
    check_folder(place.folder, allow_pickle=allow_pickle)


def _open_stored(
    place: Place,
    config: Any,
    stored: StoredCheckpoint,
    trust_remote_code: bool,
    streamed: bool,
    blocks: str | None,
    tokenizer: Any | None = None,
    *,
    with_extra: bool = True,
) -> SourceModel:
    """A model whose checkpoint is quantized, with dense weights."""
    source = place.name
    model = _skeleton(source, config, trust_remote_code, with_buffers=True)
    try:
        storage, info = load_stored(model, stored, streamed=streamed)
    except (*_SENSELESS, RuntimeError) as error:
        raise ModelError(
            f"the weights of {source} cannot be read ({kind_and_line(error)}): a whole checkpoint is expected"
        ) from error
    _check_loaded(source, model, info)
    model.eval().requires_grad_(False)
    extra = _find_extra(place, model, blocks, False, stored) if with_extra else ExtraTensors()
    reader = tokenizer or open_tokenizer(place.folder, trust_remote_code)
    return SourceModel(source, model, reader, storage, extra, read_from=stored.summary)


def _find_extra(
    place: Place,
    model: nn.Module,
    blocks: str | None,
    allow_pickle: bool,
    stored: StoredCheckpoint | None = None,
) -> ExtraTensors:
    extra = find_extra_tensors(model, place.folder, allow_pickle=allow_pickle, stored=stored)
    if extra:
        check_blocks(place.name, find_blocks(model, blocks), extra, model)
    return extra


def positions(model: Any) -> int | None:
    """How many tokens in a row a model knows; None: any number."""
    limit = getattr(text_model(model).config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def fingerprint(
    model: nn.Module, storage: Storage | None = None, extra: Mapping[str, torch.Tensor] | None = None
) -> str:
    """Hash of all parameters and buffers that a checkpoint stores: names, types, shapes, bytes.

    Tensors for which the class has no place are counted where they are given as `extra`.

    As this is where every tensor passes by once before the work, streamed ones for the first time, they are also
    looked at: a damaged model is refused now rather than after some hours, or not at all.

    Raises:
        ModelError: a tensor has another shape than the model's.
        NonFiniteError: a parameter holds NaN or infinity.
    """
    digest = blake2b(digest_size=16)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in (storage or InMemory()).tensors(model):
        if tensor.shape != shapes[name]:
            raise _wrong_shape(name, tensor.shape, shapes[name], "the source model")
        if name in parameters and not all_finite(tensor):
            raise NonFiniteError(
                f"{name} of the source model holds NaN or infinity: finite weights are expected; it was saved like "
                "that, so take an earlier checkpoint, or another model"
            )
        _count(digest, name, tensor)
    for name, tensor in sorted((extra or {}).items()):
        _count(digest, name, tensor)
    return digest.hexdigest()


def _count(digest: Any, name: str, tensor: torch.Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _wrong_shape(name: str, found: Any, wanted: Any, source: str) -> ModelError:
    return ModelError(
        f"{name} of {source} cannot be read: it has the shape {tuple(found)}, and by config.json {tuple(wanted)} is "
        "expected; take the config that came with the weights"
    )


def _skeleton(source: str, config: Any, trust_remote_code: bool, *, with_buffers: bool = False) -> nn.Module:
    """The modules of a model, without weights; with what they compute for themselves, if that is expected."""
    try:
        with empty_weights() if with_buffers else torch.device("meta"):
            model: nn.Module = auto_class(config, source).from_config(
                config, trust_remote_code=trust_remote_code, dtype=config.dtype or torch.float32
            )
            return model
    except (*_SENSELESS, RuntimeError) as error:
        raise ModelError(
            f"the model of {source} cannot be built from its config ({kind_and_line(error)}): the config that came "
            "with the weights is expected"
        ) from error


def _open_config(source: str, location: str, where: dict[str, Any]) -> Any:
    try:
        config = AutoConfig.from_pretrained(location, **where)
    except _SENSELESS as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{source} comes with its own modeling code, which is not run unless you trust it: "
                "read it, then pass --trust-remote-code"
            ) from error
        # A strict config wraps what was wrong with a field.
        words = kind_and_line(error.__cause__ or error)
        raise ModelError(
            f"{source} cannot be opened ({words}): a whole model of a kind that transformers knows is expected"
        ) from error
    auto_class(config, source)
    if config.dtype is None and "gguf_file" not in where and quantization_of(config) is None:
        config.dtype = prevailing_type(Path(location))
    return config


def _open_weights(
    source: str, location: str, config: Any, where: dict[str, Any], options: dict[str, Any]
) -> nn.Module:
    if "gguf_file" not in where:
        options = {**options, "config": config}
    try:
        with without_adapters():
            model, info = auto_class(config, source).from_pretrained(
                location,
                **where,
                **options,
                dtype=torch.float32 if "gguf_file" in where else "auto",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except UnpicklingError as error:
        raise ModelError(
            f"the pickled weights of {source} are damaged or hold more than tensors, code perhaps: nothing of it was "
            "run; safetensors are expected"
        ) from error
    except (*_SENSELESS, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"the weights of {source} cannot be read ({kind_and_line(error)}): a whole checkpoint, and what opens it, "
            "is expected"
        ) from error
    _check_loaded(source, model, info)
    if "gguf_file" in where:
        _forget_gguf(model)
    model.eval().requires_grad_(False)
    return model  # type: ignore[no-any-return]


def _check_loaded(source: str, model: nn.Module, info: dict[str, Any]) -> None:
    """Config and checkpoint must speak of the same model."""
    for name, found, wanted in sorted(info["mismatched_keys"]):
        raise _wrong_shape(name, found, wanted, source)
    missing = sorted(info["missing_keys"])
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ModelError(
            f"{len(missing)} tensors are missing in {source} ({some}): a whole model is expected; its files are "
            "whole, so take the config.json that came with them, or weights that were saved with these"
        )


def _forget_gguf(model: Any) -> None:
    """The weights are dequantized now; without the marks of a quantized model it can be saved again."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def open_tokenizer(location: str | Path, trust_remote_code: bool = False, **where: Any) -> Any | None:
    """The tokenizer of a folder, or None where there is none.

    Raises:
        ModelError: there is one, and it cannot be opened.
    """
    where["trust_remote_code"] = trust_remote_code
    try:
        with _Unnamed():
            return AutoTokenizer.from_pretrained(str(location), **where)
    except _SENSELESS as error:
        found = [name for name in _TOKENIZERS if (Path(location) / name).is_file()]
        if found and "gguf_file" not in where:
            raise ModelError(
                f"the tokenizer in {location} cannot be opened ({kind_and_line(error)}): {', '.join(found)} as they "
                "came with the model are expected; copy or download them again, or remove them all to go on with token "
                "ids"
            ) from error
        # Quantizing from token ids needs no tokenizer; where one is needed, an error says so then.
        return None


class _Unnamed:
    """tokenizers raises `Exception` itself at a damaged file: that class, and none below it, becomes a ValueError."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is Exception:
            raise ValueError(str(error)) from error
