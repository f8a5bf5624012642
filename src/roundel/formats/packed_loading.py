"""Roundel's own container read by transformers' loader, into packed modules.

transformers builds a model without weights, and reads its files tensor by tensor, each to the place that its name and
the device map say. Before that, packed modules are put where the files have integers; their parts are empty tensors
whose shapes the files' headers give, so that transformers knows what goes where and how large it is. Then a conversion
collects the stored tensors of a weight (grid/serialization.py) and makes of them the parts of its module: in memory are
the integers, twice at most, and never a decoded weight.

But for what no packed module computes (runtime/replace.py) and for experts that share one tensor: these are decoded, a
tensor at a time, when all else is loaded.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import nn
from transformers.core_model_loading import ConversionOps, WeightConverter

from roundel.activations.attach import FILE as ACTIVATIONS
from roundel.activations.attach import attach_saved
from roundel.errors import FormatError, ModelError
from roundel.formats.integers import read_about
from roundel.formats.packed_saving import Decoded, keep_saving_packed
from roundel.formats.roundel_container import FILE, read_decoded
from roundel.formats.shards import ShardReader, shard_files
from roundel.formatting import kind_and_line
from roundel.grid.outliers import Outliers
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.grid.serialization import unpack_weight
from roundel.model.experts import divide, rejoin, stacks_in
from roundel.runtime.modules import Packed, PackedEmbedding
from roundel.runtime.packed_weight import PackedWeight
from roundel.runtime.replace import places_in, replace_weight

_OUTLIERS = ("outliers.values", "outliers.positions", "outliers.counts")
_STATISTIC = ("codes", "scale", "zero", "")
# The parts of a stored weight, longest name first, as transformers tries them.
_PARTS = sorted(
    {"codes", "order", *_OUTLIERS} | {f"{s}.{p}".rstrip(".") for s in ("scale", "zero") for p in _STATISTIC},
    key=lambda part: (-len(part), part),
)
_SOURCES = {rf"\.{re.escape(part)}$": part for part in _PARTS}


class PackedLoading:
    """The way of one folder into a model.

    Args:
        files: that transformers will read.

    Raises:
        ModelError: they are not all weight files of a folder in Roundel's own container, or damaged.
    """

    def __init__(self, files: list[Path]) -> None:
        folder = files[0].parent
        if sorted(files) != shard_files(folder, FILE):
            raise ModelError(
                f"{folder} does not hold {files[0].name} as all of its weights: a whole folder in Roundel's own "
                "container is expected; several files that an older roundel wrote lack their index: "
                "roundel.load(FOLDER, packed=True)[0].save_pretrained(NEW) writes them anew"
            )
        self.folder = folder
        self._layers: dict[str, Any] = {n: a for file in files for n, a in read_about(file)["layers"].items()}
        self._stored = ShardReader(folder, FILE)
        # By the name of a decoded parameter in the model: the Linear, or Linears, that it is decoded from.
        self._decoded: dict[str, str] = {}
        # What transformers would make anew of an embedding's scale, did it know the module.
        self._scales: dict[str, float] = {}
        self._ties: dict[str, list[str]] = {}
        self._ignored: dict[str, Any] = {}

    def prepare(self, model: Any) -> None:
        """Put packed modules, without weights, in the place of dense ones.

        Raises:
            ModelError: files and model do not fit together.
        """
        places = {name for names in places_in(model).values() for name in names}
        tied = _tied(model)
        for stored in self._layers:
            name = _own_name(model, stored)
            if name is None:
                continue  # of the head, where the model has none; or of experts
            names = [name, *tied.get(name, ())]
            if not places.issuperset(names):
                self._decoded[f"{name}.weight"] = stored
                continue
            module = model.get_submodule(name)
            if isinstance(module, nn.Embedding) and getattr(module, "embed_scale", None) is not None:
                self._scales[name] = _scale_of(module, name)
            replace_weight(model, names, self._skeleton(stored), "exact")
            self._ties[name] = names[1:]
        self._note_experts(model)
        self._check_whole(model)
        self._quieten(model)

    def conversions(self) -> list[WeightConverter]:
        """For transformers' loader."""
        return [WeightConverter(list(_SOURCES), ".codes", [_Pack(self._ties)])]

    def finish(self, model: Any, activations: bool) -> None:
        """When all is loaded: the rest, activations, and how the model is saved.

        Raises:
            ModelError: something is missing in the folder.
        """
        for name, kept in self._ignored.items():
            setattr(model, name, kept)
        del model.config.transformers_weights
        for name, scale in self._scales.items():
            for module in (model.get_submodule(name), *map(model.get_submodule, self._ties[name])):
                if isinstance(module, PackedEmbedding):
                    module.embed_scale = torch.tensor(scale, device=module.get_buffer("codes").device)
        self._decode_rest(model)
        model.requires_grad_(False)
        if activations:
            _fetch_activations(self.folder)
        attach_saved(model, self.folder)
        keep_saving_packed(model, Decoded(self.folder, self._decoded) if self._decoded else None)

    def _skeleton(self, stored: str) -> QuantizedWeight:
        """A weight of empty tensors."""
        about = self._layers[stored]
        parts = {
            f"{stored}.{part}": torch.empty(shape, dtype=dtype, device="meta")
            for part, (shape, dtype) in self._stored.shapes_below(stored).items()
        }
        values = parts.pop(f"{stored}.outliers.values", None)
        shape, scheme = about["shape"], Scheme(**about["scheme"])
        with torch.device("meta"):
            try:
                weight = unpack_weight(parts, stored, shape, scheme)
            except (KeyError, RuntimeError, FormatError) as error:
                raise ModelError(
                    f"{stored} is not whole in {self.folder} ({kind_and_line(error)}): a whole folder is expected"
                ) from error
            if values is None:
                return weight
            count = torch.empty(shape[0], dtype=torch.int32)
            columns = torch.empty(len(values), dtype=torch.int32)
            return replace(weight, outliers=Outliers(count, columns, values, shape[1]))

    def _note_experts(self, model: Any) -> None:
        of_experts = {name.rpartition(".")[0] for name in self._layers}
        divide(model)
        for name in stacks_in(model):
            stored = next((found for found in _spellings(model, name) if found in of_experts), None)
            if stored is not None:
                self._decoded[name] = stored
        rejoin(model)

    def _check_whole(self, model: Any) -> None:
        """Nothing of the model is missing in the files: transformers would give it random values, and a warning."""
        prefix = f"{model.base_model_prefix}."
        stored = {key.removeprefix(prefix) for key in self._stored.names}
        tied = getattr(model, "all_tied_weights_keys", {})
        # Of tied tensors, whichever is stored.
        held = {
            key for pair in tied.items() if stored & {k.removeprefix(prefix) for k in pair} for key in pair
        }
        known = re.compile("|".join(f"({p})" for p in model._keys_to_ignore_on_load_missing or {"(?!)"}))
        packed = {
            f"{name}.{part}"
            for name, module in model.named_modules()
            if isinstance(module, Packed)
            for part in module.part_names
        }
        missing = [
            key
            for key in model.state_dict()
            if key.removeprefix(prefix) not in stored
            and key not in self._decoded
            and key not in held
            and key not in tied
            and key not in packed
            and not known.search(key)
        ]
        if missing:
            some = ", ".join(sorted(missing)[:3])
            raise ModelError(
                f"tensors of {type(model).__name__} are missing in {self.folder} ({some}, ...): a whole folder, and "
                "the class that it was written from, are expected"
            )

    def _quieten(self, model: Any) -> None:
        """transformers need not report as missing, and as unexpected, what is decoded afterwards."""
        if not self._decoded:
            return
        for name, found in (
            ("_keys_to_ignore_on_load_missing", self._decoded),
            ("_keys_to_ignore_on_load_unexpected", self._decoded.values()),
        ):
            kept = getattr(model, name)
            self._ignored[name] = kept
            setattr(model, name, {*(kept or ()), *(f"^{re.escape(key)}" for key in found)})

    def _decode_rest(self, model: Any) -> None:
        if not self._decoded:
            return
        decoded = read_decoded(self.folder)
        divide(model)
        decoded.stacks = {
            self._decoded[name]: stack for name, stack in stacks_in(model).items() if name in self._decoded
        }
        rejoin(model)
        for name, stored in self._decoded.items():
            own = model.get_parameter(name)
            dense = decoded[stored if stored in decoded.stacks else f"{stored}.weight"]
            own.data = dense.to(own.device, own.dtype)


class _Pack(ConversionOps):  # type: ignore[misc]
    """Stored tensors of a weight as the parts of its packed module.

    Args:
        ties: the modules that share a module's weight, by its name.
    """

    def __init__(self, ties: dict[str, list[str]]) -> None:
        self.ties = ties

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Pack":
        return self  # transformers copies it for every tensor

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], full_layer_name: str, model: Any, **others: Any
    ) -> dict[str, Any]:
        """Called when the tensors of a weight are there."""
        name = full_layer_name.removesuffix(".codes")
        module = model.get_submodule(name)
        tensors = {f"{name}.{_SOURCES[source]}": found[0] for source, found in input_dict.items()}
        layout = module.layout
        weight = unpack_weight(tensors, name, [layout.rows, layout.columns], layout.scheme)
        packed = PackedWeight.pack(weight)
        return {
            f"{owner}.{part.replace('.', '_')}": tensor
            for owner in (name, *self.ties.get(name, ()))
            for part, tensor in packed.parts.items()
        }


def is_packing(converter: Any) -> bool:
    """Whether a conversion of transformers' loader packs a weight."""
    return any(isinstance(operation, _Pack) for operation in getattr(converter, "operations", ()))


def _tied(model: Any) -> dict[str, list[str]]:
    """The modules that share a module's weight, by its name, as transformers will tie them."""
    found: dict[str, list[str]] = {}
    for to, of in getattr(model, "all_tied_weights_keys", {}).items():
        found.setdefault(of.removesuffix(".weight"), []).append(to.removesuffix(".weight"))
    return found


def _own_name(model: Any, stored: str) -> str | None:
    """What the model calls a stored Linear; None where it has no such module."""
    for name in _spellings(model, stored):
        try:
            model.get_submodule(name)
        except AttributeError:
            continue
        return name
    return None


def _spellings(model: Any, name: str) -> tuple[str, str, str]:
    """A name as it is, and with or without the prefix of the base model."""
    prefix = f"{model.base_model_prefix}."
    return name, name.removeprefix(prefix), prefix + name


def _scale_of(module: nn.Module, name: str) -> float:
    """The number that an embedding multiplies by, of a module without weights."""
    for scale in (getattr(module, "scalar_embed_scale", None), module.embed_scale):
        if scale is not None and not (isinstance(scale, torch.Tensor) and scale.is_meta):
            return float(scale)  # type: ignore[arg-type]
    raise ModelError(
        f"{name} is scaled by a number that {type(module).__name__} does not tell before it is loaded: open the folder "
        "with roundel.load"
    )


def _fetch_activations(folder: Path) -> None:
    """See that the file of quantized activations is beside the weights; of a folder of the hub's cache, fetch it.

    Raises:
        ModelError: it is not, and cannot be fetched.
    """
    if (folder / ACTIVATIONS).is_file():
        return
    repo, name = _cached_repo(folder)
    error: Exception | None = None
    if repo is not None:
        snapshot = folder.relative_to(repo / "snapshots").parts
        try:
            hf_hub_download(
                name,
                "/".join((*snapshot[1:], ACTIVATIONS)),
                revision=snapshot[0],
                cache_dir=repo.parent,
            )
            return
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as found:
            error = found
    why = f" ({kind_and_line(error)})" if error else ""
    raise ModelError(
        f"no {ACTIVATIONS} in {folder}{why}: config.json says that activations are quantized, and this file how; a "
        "whole folder is expected"
    ) from error


def _cached_repo(folder: Path) -> tuple[Path | None, str]:
    """The place and the name of the repository in whose snapshot of the hub's cache a folder is."""
    for parent in folder.parents:
        if parent.parent.name == "snapshots" or parent.name == "snapshots":
            repo = parent.parent if parent.name == "snapshots" else parent.parent.parent
            if repo.name.startswith("models--"):
                return repo, repo.name.removeprefix("models--").replace("--", "/")
    return None, ""
