"""`save_pretrained` of a packed model: Roundel's own container again.

transformers' own writes `model.safetensors`, whatever a quantizer says. With packed weights in it, that file is a trap:
where Roundel is not imported, transformers finds it and none of the dense weights in it, gives them random values, and
warns. So a packed model has a `save_pretrained` of its own, as an attribute of the object, which copies have too; the
quantizer refuses the other one. Rejected: a class of its own for packed models, as config.json says the class's name.

The same integers are written, under the same names, in the same header; what is quantized of activations goes along.
"""

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils.hub import convert_file_size_to_int

from roundel.activations.attach import FILE as ACTIVATIONS
from roundel.activations.attach import attached
from roundel.errors import OutputError
from roundel.formats.content import Piece
from roundel.formats.integers import IntegerFiles, write_integer_files
from roundel.formats.roundel_container import FILE, write_about, write_config
from roundel.formats.shards import SHARD_BYTES, index_name, shard_files
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.model.experts import divide, rejoin, stacks_in
from roundel.model.linears import LinearView, linears_in
from roundel.runtime.modules import Packed
from roundel.system.files import reported, set_modes

# Of transformers and of torch: what it would load instead of ours, where Roundel is not imported.
_OTHERS = ("model*.safetensors", "model*.safetensors.index.json", "pytorch_model*.bin")


@dataclass(frozen=True)
class Decoded:
    """Integers of a model that are decoded in it, as no packed module computes with them.

    Attributes:
        folder: where they are.
        names: what the folder calls the Linear, or the stack of experts, by the name of the model's parameter.
    """

    folder: Path
    names: dict[str, str]


def decoded_in(model: Any, folder: Path) -> Decoded | None:
    """What of a folder in Roundel's own container is decoded in a model that was opened from it; None: nothing is."""
    names = {}
    for name in IntegerFiles(folder, FILE).schemes:
        try:
            module = model.get_submodule(name)
        except AttributeError:  # an expert, which has no module
            stack = name.rpartition(".")[0]
            names[stack] = stack
            continue
        if not isinstance(module, Packed):
            names[f"{name}.weight"] = name
    return Decoded(folder, names) if names else None


def keep_saving_packed(model: Any, decoded: Decoded | None = None) -> None:
    """From now on `model.save_pretrained` writes Roundel's own container."""
    # Not a method: what is bound to the object is not copied and pickled with it.
    model.save_pretrained = partial(save_packed, model, decoded)


def save_packed(
    model: Any,
    decoded: Decoded | None,
    save_directory: str | Path,
    is_main_process: bool = True,
    max_shard_size: int | str = SHARD_BYTES,
    token: Any = None,
    **others: Any,
) -> None:
    """As transformers' `save_pretrained`, which has the words for its arguments.

    Args:
        model: with packed modules.
        decoded: what is not packed in it; it is written as integers again where these are still what it was made of.
        save_directory: gets config.json, generation_config.json, the weight files and what activations need.
        is_main_process: else nothing is written.
        max_shard_size: bytes of a file, or `500MB`; files are of 1 GiB at most.
        token: nothing is asked of the hub here.
        others: those of transformers that say something else than they do by default are refused.

    Raises:
        OutputError: the folder cannot be written, or has weights of another kind in it.
    """
    _refuse(others)
    folder = Path(save_directory)
    if not is_main_process:
        return
    absent = next((name for name, tensor in model.state_dict().items() if tensor.is_meta), None)
    if absent is not None:
        raise OutputError(
            f"{absent} is not in memory, but offloaded: a model that is all there is expected; open it without a "
            "device_map that leaves parts on the disk"
        )
    with reported(folder):
        folder.mkdir(parents=True, exist_ok=True)
        found = sorted(path.name for pattern in _OTHERS for path in folder.glob(pattern))
        if found:
            raise OutputError(
                f"{folder} holds {found[0]}, which transformers would load instead of packed weights where Roundel is "
                "not imported: choose another folder, or remove it"
            )
        # Of a former save, should the new one not replace them.
        old = {*shard_files(folder, FILE), folder / index_name(FILE), folder / ACTIVATIONS}
        if model.is_remote_code():
            custom_object_save(model, folder, config=model.config)
        work = Path(tempfile.mkdtemp(prefix=f".{FILE}-", dir=folder))
        try:
            _fill(work, model, decoded, min(convert_file_size_to_int(max_shard_size), SHARD_BYTES))
            set_modes(work)
            for path in work.iterdir():
                old.discard(folder / path.name)
                path.replace(folder / path.name)
        finally:
            shutil.rmtree(work)
        for path in old:
            path.unlink(missing_ok=True)


def _fill(folder: Path, model: Any, decoded: Decoded | None, most: int) -> None:
    """Write everything into an empty folder, weights in files of `most` bytes."""
    divided = set(stacks_in(model))  # where inputs of experts are quantized
    divide(model)
    try:
        write_integer_files(folder, FILE, model, _pieces(model, decoded), most)
    finally:
        rejoin(model, keep=divided)
    quantizer = attached(model)
    if quantizer is not None:
        quantizer.save(folder)
    write_config(folder, model, write_about(folder, activations=quantizer is not None))


def _pieces(model: Any, decoded: Decoded | None) -> Iterator[Piece]:
    """Weights one by one, each once however many modules share it; then everything else."""
    packed = {name: module for name, module in model.named_modules() if isinstance(module, Packed)}
    seen: set[tuple[int, torch.Size]] = set()
    for name, module in packed.items():
        place = _place(module.get_buffer("codes"))
        if place not in seen:
            yield Piece({name: module.integers()})
        seen.add(place)
    done = {f"{name}.{part}" for name, module in packed.items() for part in module.part_names}
    if decoded is not None:
        for parameter, piece in _decoded_again(model, decoded):
            yield piece
            done.add(parameter)
    others: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        place = _place(tensor)
        if name not in done and (place not in seen or not tensor.numel()):
            others[name] = tensor.cpu().contiguous()
        seen.add(place)
    yield Piece(others=others)


def _place(tensor: torch.Tensor) -> tuple[int, torch.Size]:
    return tensor.data_ptr(), tensor.shape


def _decoded_again(model: Any, decoded: Decoded) -> Iterator[tuple[str, Piece]]:
    """Parameters that are, to the last bit, what integers of the folder say, and these."""
    files = IntegerFiles(decoded.folder, FILE)
    views = {view.name: view for view in linears_in(model, "")}
    stacks = stacks_in(model)
    for parameter, stored in decoded.names.items():
        found = {parameter.removesuffix(".weight"): stored}
        if parameter in stacks:
            found = {f"{parameter}.{index}": f"{stored}.{index}" for index in range(len(stacks[parameter]))}
        weights = {name: files.weight(of) for name, of in found.items() if of in files.schemes}
        if all(_says(weight, views[name]) for name, weight in weights.items()):
            rest = {f"{name}.weight": views[name].weight.cpu() for name in found.keys() - weights.keys()}
            yield parameter, Piece(weights, {name: tensor.contiguous() for name, tensor in rest.items()})


def _says(weight: QuantizedWeight, view: LinearView) -> bool:
    return torch.equal(weight.dequantize(view.weight.dtype), view.weight.cpu())


def _refuse(others: dict[str, Any]) -> None:
    said = {name: value for name, value in others.items() if value not in (None, False)}
    # What transformers does by default is no other word here.
    said = {
        name: v
        for name, v in said.items()
        if name not in ("save_peft_format", "save_original_format", "safe_serialization")
    }
    if said:
        raise OutputError(
            f"{', '.join(sorted(said))} is not for a packed model's save_pretrained, which writes the model's own "
            "integers into a folder; model.push_to_hub(REPO) uploads them"
        )
