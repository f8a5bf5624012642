"""Opening a quantized model with its weights packed, as they compute (runtime/).

The model's modules are made without weights. Its integers are read a Linear at a time, packed, and put in the place of
the modules that they belong to; then everything else is read. So the memory that it takes is that of the packed model
and of one Linear, whatever the model takes decoded.

Left decoded: stacked experts of mixtures, embeddings that compute something else than torch's or Gemma's, and
weights that are stored in a way that no grid of Roundel's has (formats/found_integers.py).
"""

import gc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import GenerationConfig

from roundel.compiled.extension import instruction_sets
from roundel.errors import FormatError, ModelError, RecipeError, RoundelError
from roundel.formats.found_integers import FoundIntegers, find_integers, why_unpacked
from roundel.formats.gguf.decoded_tensors import GgufTensors
from roundel.formats.gguf.file import forget_files
from roundel.formats.packed_saving import decoded_in, keep_saving_packed
from roundel.formats.registry import open_packed, packed_format
from roundel.formats.roundel_container import is_container
from roundel.formatting import kind_and_line
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.model.checkpoint import is_own
from roundel.model.experts import rejoin
from roundel.model.place import Place
from roundel.model.source import SourceModel, open_absent, open_tokenizer
from roundel.model.storage import InMemory, OnDisk, Storage, put, tie
from roundel.model.turns import in_turn
from roundel.runtime.modes import MODES, Mode
from roundel.runtime.replace import places_in, replace_weight
from roundel.system.memory import give_back_memory

_PACKED = "read from {kind}'s integers, which compute as they are stored"


@dataclass(frozen=True)
class Packing:
    """How quantized weights are held while a model runs.

    Attributes:
        packed: as they are stored; False: decoded; None: packed where there are integers and kernels.
        mode: how packed weights are multiplied with (runtime/product.py).

    Raises:
        RecipeError: a mode that there is not, or one that has no effect.
    """

    packed: bool | None = None
    mode: Mode = "exact"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise RecipeError(f"mode={self.mode!r}: {' or '.join(MODES)} is expected")
        if self.packed is False and self.mode != "exact":
            raise RecipeError(
                f"mode={self.mode} is for packed weights, and packed=False (--no-packed) decodes them: leave one "
                "of them out"
            )

    @property
    def wanted(self) -> bool:
        """Whether to look for integers."""
        return bool(instruction_sets()) if self.packed is None else self.packed


DECODED = Packing(packed=False)


def may_be_packed(place: Place, packing: Packing) -> bool:
    """Whether a model will be in memory packed, as far as its config tells."""
    return packing.wanted and (not why_unpacked(place) or bool(packing.packed))


@in_turn
def open_with_packed(
    place: Place, packing: Packing, tokenizer: Any | None, trust_remote_code: bool
) -> SourceModel | None:
    """A model with packed weights, in memory; None: it is to be opened with decoded ones.

    Args:
        place: of a model, quantized or not.
        packing: what is wanted.
        tokenizer: instead of the model's own.
        trust_remote_code: run modeling code that comes with the model.

    Raises:
        ModelError: it cannot be opened, or packed weights are wanted and there are none.
    """
    if not may_be_packed(place, packing):
        return None
    why_not = why_unpacked(place)
    if not why_not:
        source = _open_absent(place, tokenizer, trust_remote_code)
        places = places_in(source.model)
        found = find_integers(place, source.model, places)
        why_not = found.why_not or _missing(source, places, found)
        if not why_not:
            _fill(source, places, found, packing.mode)
            if place.is_gguf:
                forget_files()
                gc.collect()
            own = not place.is_gguf and is_container(place.folder)
            keep_saving_packed(source.model, decoded_in(source.model, place.folder) if own else None)
            return replace(source, storage=InMemory())
    if packing.packed:
        raise ModelError(
            f"{place.name} cannot be opened with packed weights ({why_not}): a model that is stored in integers is "
            "expected; leave packed (--packed) out, quantize it, or export what is quantized in another format"
        )
    return None


def _open_absent(place: Place, tokenizer: Any | None, trust_remote_code: bool) -> SourceModel:
    """Without its weights, those that are tied being one."""
    own = (
        None
        if place.is_gguf
        else open_packed(place.folder, trust_remote_code, streamed=True, weights_only=True)
    )
    if own is not None:
        model, folder = own.model, place.folder
        if (folder / "generation_config.json").is_file() and model.can_generate():
            model.generation_config = GenerationConfig.from_pretrained(str(folder))
        reader = tokenizer or open_tokenizer(folder, trust_remote_code)
        source = SourceModel(place.name, model, reader, own.storage or InMemory())
    else:
        source = open_absent(place, trust_remote_code=trust_remote_code)
        kind = packed_format(place.folder)
        own_output = place.is_gguf or is_own(place.path)
        source = replace(source, read_from="" if own_output else _PACKED.format(kind=kind))
    rejoin(source.model)
    tie(source.model)
    if place.gguf is None:
        return source
    # Config and tokenizer were read from a file each word of which had become an object, in cycles.
    gc.collect()
    return replace(source, storage=_in_gguf(place.gguf, source.model))


def _in_gguf(path: Path, model: Any) -> Storage:
    """The parameters of a model in a file; none of an architecture that is not known."""
    try:
        tensors = GgufTensors(path, model)
    except FormatError:  # find_integers says so
        return InMemory()
    for name, _ in list(model.named_buffers()):
        if name in tensors:
            put(model, name, tensors[name])
    pairs = getattr(model, "all_tied_weights_keys", {}).items()
    tied = {**{source: target for target, source in pairs}, **dict(pairs)}
    return OnDisk({name: (tensors, name) for name in tensors}, tied)


def _missing(source: SourceModel, places: dict[str, list[str]], found: FoundIntegers) -> str:
    """What is missing for a packed model, in words."""
    if not found.schemes:
        return "none of its Linears is stored in integers that are read"
    packed = {f"{name}.weight" for first in found.schemes for name in places[first]}
    for names in _by_parameter(source.model):
        if not (packed.intersection(names) or any(source.storage.holds(name) for name in names)):
            return f"{names[0]} is not there"
    return ""


def _fill(source: SourceModel, places: dict[str, list[str]], found: FoundIntegers, mode: Mode) -> None:
    """Bring the weights into memory, those in integers packed."""
    model = source.model
    for name in found.schemes:
        replace_weight(model, places[name], _integers(source.name, found, name), mode)
        give_back_memory()
    shared = [names for names in _by_parameter(model) if len(names) > 1]
    for name, child in model.named_children():
        source.storage.load(child, name)
        for names in shared:
            _share(model, names)
    for name, parameter in list(model.named_parameters(recurse=False)):  # BLIP-2's queries
        if parameter.is_meta:
            put(model, name, source.storage.tensor(model, name))


def _integers(source: str, found: FoundIntegers, name: str) -> QuantizedWeight:
    try:
        return found.weight(name)
    except (RoundelError, SafetensorError, KeyError, ValueError, RuntimeError, OSError) as error:
        raise ModelError(
            f"the integers of {name} in {source} cannot be read ({kind_and_line(error)}): a whole model is expected; "
            "copy or download it again"
        ) from error


def _by_parameter(model: Any) -> list[list[str]]:
    """Names of the absent parameters, all of one together."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.is_meta:
            names.setdefault(id(parameter), []).append(name)
    return list(names.values())


def _share(model: Any, names: list[str]) -> None:
    """Make what was read of a parameter under one of its names its value under all."""
    read = next((p for p in map(model.get_parameter, names) if not p.is_meta), None)
    for name in names if read is not None else ():
        owner, _, key = name.rpartition(".")
        model.get_submodule(owner)._parameters[key] = read
