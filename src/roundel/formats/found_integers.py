"""The integers of a folder or a GGUF file, whoever wrote it: of which weights, on which grids, and the weights.

What Roundel writes and what others write in the same layout is found in the same way, from the tensors that are there.
So a grid is that of the file: a group that a format has split is several groups here, and a symmetric grid whose zero
points are all stored is seen to be one. A weight that is stored in a way that no grid of ours has (an order of columns
that breaks groups, floats of four bits, one factor for all of it) is not among them.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs
from transformers.pytorch_utils import Conv1D

from roundel.activations.attach import FILE as ACTIVATIONS
from roundel.errors import FormatError
from roundel.formats.container import Integers
from roundel.formats.gguf.decoded_tensors import GgufTensors
from roundel.formats.gguf.recovered import integers_in
from roundel.formats.integers import IntegerFiles
from roundel.formats.registry import CONTAINERS, packed_about, packed_format
from roundel.formats.roundel_container import FILE
from roundel.formats.shards import ShardReader
from roundel.grid.block_types import BLOCK_TYPES
from roundel.grid.packing import unpack
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.model.names import stored_parts
from roundel.model.place import Place
from roundel.model.stored.compressed import Compressed
from roundel.model.stored.integers import unmixed

_WORD = 32
_SCALES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}
_LARGEST_ZERO = 255
# In which of the layouts AutoRound packs.
_AUTO_ROUND = {"auto_round": "gptq_v2", "auto_gptq": "gptq", "auto_awq": "awq"}
SchemeOf = Callable[[str], Scheme | None]
"""The grid of a Linear by its name in the file; None: it is stored in another way."""


def _none(name: str) -> QuantizedWeight:
    raise KeyError(name)


@dataclass(frozen=True)
class FoundIntegers:
    """What there is.

    Attributes:
        schemes: the grids, by the modules' names in the model.
        weight: reads the integers of one of them.
        why_not: what there is instead, in words, where there are none.
    """

    schemes: dict[str, Scheme] = field(default_factory=dict)
    weight: Integers = _none
    why_not: str = ""


def why_unpacked(place: Place) -> str:
    """Why the weights of a model are not to be had as integers, as far as its config tells; empty: they may be."""
    if place.is_gguf:
        return ""
    kind = packed_format(place.folder)
    if kind is None:
        return "its weights are dense"
    if _container(place.folder) not in CONTAINERS:
        return f"it is quantized by {kind}"
    about = packed_about(place.folder)
    groups = about.get("config_groups")
    inputs = [g for g in groups.values() if g.get("input_activations")] if isinstance(groups, dict) else []
    if (inputs or about.get("kv_cache_scheme")) and not (place.folder / ACTIVATIONS).is_file():
        return "its activations are quantized by other code than Roundel's"
    return ""


def find_integers(place: Place, model: Any, names: Collection[str]) -> FoundIntegers:
    """Look for them; they are read when they are asked for.

    Args:
        place: that `why_unpacked` has nothing to say of.
        model: its names and shapes; tensors may be absent.
        names: of the modules whose weights are asked about.

    Raises:
        RoundelError: the files are damaged; so does what is returned.
    """
    if place.gguf is not None:
        return _in_gguf(place.gguf, model, names)
    folder = place.folder
    container = _container(folder)
    if container == "roundel":
        files = IntegerFiles(folder, FILE)
        schemes = {name: scheme for name, scheme in files.schemes.items() if name in names}
        return FoundIntegers(schemes, files.weight)
    stored = ShardReader(folder)
    if container == "spqr":
        scheme = Scheme(bits=3, group_size=16, round_zero=False, scale_bits=3, zero_bits=3)
        schemes = {name: scheme for name in names if f"{name}.dense_weights" in stored}
    else:
        linears = [name for name in names if not isinstance(model.get_submodule(name), Conv1D)]
        schemes = _of_parts(model, linears, _scheme_reader(folder, container, stored))
    return FoundIntegers(schemes, CONTAINERS[container].integers(folder, model, schemes))


def _container(folder: Path) -> str:
    """The container that reads the integers of a folder."""
    kind = packed_format(folder) or "dense"
    about = packed_about(folder)
    if kind == "gptq" and about.get("checkpoint_format") == "gptq_v2":
        return "gptq_v2"
    if kind.endswith("auto-round"):
        return _AUTO_ROUND.get(
            str(about.get("packing_format", "")).rpartition(":")[2], kind + ", another packing"
        )
    return kind


def _scheme_reader(folder: Path, container: str, stored: ShardReader) -> SchemeOf:
    if container == "compressed-tensors":
        form = Compressed(packed_about(folder))
        return lambda name: _compressed(stored, name, form)
    if container == "awq":
        return lambda name: _awq(stored, name)
    return lambda name: _gptq(stored, name, less_one=container == "gptq")


def _of_parts(model: Any, names: Iterable[str], scheme_of: SchemeOf) -> dict[str, Scheme]:
    """The scheme of every Linear all of whose parts have one."""
    found = {}
    for name, parts in stored_parts(model, list(names), {}).items():
        schemes = {scheme_of(part.name) for part in parts}
        if len(schemes) == 2 and None not in schemes:
            # Parts of which one happens to have no zero points but the middle.
            schemes = {scheme.model_copy(update={"sym": False}) for scheme in schemes if scheme is not None}
        if len(schemes) == 1:
            (scheme,) = schemes
            if scheme is not None:
                found[name] = scheme
    return found


def _gptq(stored: ShardReader, name: str, *, less_one: bool) -> Scheme | None:
    parts = [f"{name}.{part}" for part in ("qweight", "qzeros", "scales")]
    if not all(part in stored for part in parts):
        return None
    (words, out), (groups, zero_words) = stored.shape(parts[0]), stored.shape(parts[1])
    bits = zero_words * _WORD // out
    in_features = words * _WORD // bits
    if in_features % groups:
        return None
    width = in_features // groups
    if f"{name}.g_idx" in stored:
        index = stored[f"{name}.g_idx"].long()
        if not torch.equal(index.sort().values, torch.arange(in_features) // width):
            return None
    zeros = unpack(stored[parts[1]].contiguous(), bits, out).int() + int(less_one)
    return _scheme(bits, width, in_features, zeros, stored[parts[2]].dtype)


def _awq(stored: ShardReader, name: str) -> Scheme | None:
    parts = [f"{name}.{part}" for part in ("qweight", "qzeros", "scales")]
    if not all(part in stored for part in parts):
        return None
    in_features, groups = stored.shape(parts[0])[0], stored.shape(parts[1])[0]
    if in_features % groups:
        return None
    return _scheme(4, in_features // groups, in_features, unmixed(stored[parts[1]]), stored[parts[2]].dtype)


def _scheme(
    bits: int, width: int, in_features: int, zeros: torch.Tensor, scales: torch.dtype
) -> Scheme | None:
    if bits not in range(2, 9) or scales not in _SCALES or int(zeros.max()) > _LARGEST_ZERO:
        return None
    return Scheme(
        bits=bits,
        group_size=-1 if width == in_features else width,
        sym=bool((zeros == 2 ** (bits - 1)).all()),
        scale_dtype=_SCALES[scales],  # type: ignore[arg-type]
    )


def _compressed(stored: ShardReader, name: str, form: Compressed) -> Scheme | None:
    codes = next((p for p in ("weight_packed", "weight") if f"{name}.{p}" in stored), None)
    if codes is None or f"{name}.weight_scale" not in stored or f"{name}.weight_g_idx" in stored:
        return None
    wanted = "I32" if codes == "weight_packed" else "I8"
    weights: QuantizationArgs | None = form.scheme_of(name).weights
    if weights is None or getattr(weights.type, "value", weights.type) != "int":
        return None
    if stored.type(f"{name}.{codes}") != wanted or weights.num_bits not in range(2, 9):
        return None
    shape = stored.shape(f"{name}.{codes}")
    out, in_features = stored[f"{name}.weight_shape"].tolist() if codes == "weight_packed" else shape
    scales, points = stored[f"{name}.weight_scale"], f"{name}.weight_zero_point" in stored
    if scales.ndim != 2 or len(scales) != out or in_features % scales.shape[1] or scales.dtype not in _SCALES:
        return None
    if points == weights.symmetric:
        return None
    width = in_features // scales.shape[1]
    return Scheme(
        bits=weights.num_bits,
        group_size=-1 if width == in_features else width,
        sym=weights.symmetric,
        scale_dtype=_SCALES[scales.dtype],  # type: ignore[arg-type]
    )


def _in_gguf(path: Path, model: Any, names: Iterable[str]) -> FoundIntegers:
    try:
        tensors = GgufTensors(path, model)
    except FormatError as error:
        return FoundIntegers(why_not=str(error))
    schemes = {}
    for name in names:
        kinds = tensors.kinds(f"{name}.weight") if f"{name}.weight" in tensors else set()
        if len(kinds) == 1 and kinds <= BLOCK_TYPES.keys():
            schemes[name] = Scheme(type=kinds.pop())  # type: ignore[arg-type]
    return FoundIntegers(schemes, integers_in(path, model, schemes))
