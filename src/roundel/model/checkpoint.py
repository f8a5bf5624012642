"""A checkpoint's folder, looked at before anything of the model is read.

A safetensors file is eight bytes that say how long its header is, the header in JSON (of every tensor its type, its
shape and its bytes), and the tensors, one after the other. An index says which of several files holds which tensor.
What is torn, cut off or hostile (a header that claims more bytes than there are, an index that points out of the
folder), or holds weights of another type than its config says, is refused here, in words that say what to do. The
libraries behind us refuse most of it too, each in words of its own, and some of it only when half of the work is done.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeGuard

from roundel.errors import ModelError
from roundel.system.belongings import MANIFEST, listed_files

# The file that transformers begins with, the first that there is.
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# The longest header that safetensors reads.
_LONGEST_HEADER = 100_000_000
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_PLAIN = ("F64", "F32", "F16", "BF16")
_NAMES = {"F8_E4M3": "torch.float8_e4m3fn", "F8_E5M2": "torch.float8_e5m2", "C64": "torch.complex64"}


@dataclass(frozen=True)
class Entry:
    """A tensor in the header of a file: type (in the words of safetensors), shape, first and last byte behind it."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def check_folder(path: Path, *, allow_pickle: bool) -> None:
    """Look at what a folder says about its model, and at the weight files that transformers would read.

    Args:
        path: the folder.
        allow_pickle: read pickled files where there are no safetensors.

    Raises:
        ModelError: no model, or a damaged or hostile one.
    """
    config = path / "config.json"
    if not config.is_file():
        found = sorted(file.name for file in path.glob("*.gguf"))
        if found:
            raise ModelError(
                f"{path} holds {len(found)} GGUF files: name one of them, {path / found[0]} for example"
            )
        raise ModelError(f"no config.json in {path}: a Hugging Face model folder is expected")
    about = _read_object(config)
    if not isinstance(about.get("model_type"), str) and "auto_map" not in about:
        raise ModelError(
            f"{config} names no model_type: the config.json that came with the weights is expected"
        )
    if "transformers_weights" in about:
        raise ModelError(
            f"{config} names its own weight file (transformers_weights): remove the key; model.safetensors, one "
            "file or sharded, is expected"
        )
    if (path / "generation_config.json").is_file():
        _read_object(path / "generation_config.json")  # transformers would go on without it
    quantization = _quantization_in(about)
    if quantization is not None and not isinstance(quantization, dict):
        raise ModelError(
            f"{config} says {quantization!r} of its quantization: an object that describes it is expected, or, for a "
            "model that is not quantized, nothing; take the config.json that came with the weights"
        )
    _check_weights(path, allow_pickle, quantization is not None)


def is_own(path: Path) -> bool:
    """Whether Roundel wrote a folder, or the folder that a file is in and the file with it."""
    if path.is_file():
        return path.name in listed_files(path.parent)
    return (path / MANIFEST).is_file()


def own_output(source: str) -> ModelError:
    """The error about a model that Roundel has quantized."""
    return ModelError(
        f"{source} is quantized already, by Roundel: the original model is expected; to quantize the result once more "
        "all the same, pass --allow-quantized (allow_quantized=True)"
    )


def _quantization_in(about: dict[str, Any]) -> Any:
    """What a config says of the quantization of the model, or of the language model inside of it."""
    parts = [part for part in (about, about.get("text_config")) if isinstance(part, dict)]
    found = [part.get(key) for part in parts for key in ("quantization_config", "compression_config")]
    return next((value for value in found if value), None)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({error}): a JSON file is expected") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds {type(found).__name__}: a JSON object is expected")
    return found


def _check_weights(folder: Path, allow_pickle: bool, quantized: bool) -> None:
    entry = _entry(folder, allow_pickle)
    if not entry.name.endswith(".json"):
        _check_file(entry, None, quantized)
        return
    files = _read_index(entry)
    for file in files:
        _refuse_absent(folder / file, f"{entry} names it")
    for file, tensors in files.items():
        _check_file(folder / file, tensors, quantized)


def weight_files(folder: Path, *, allow_pickle: bool) -> list[Path]:
    """The files that hold a model's weights.

    Raises:
        ModelError: there are none, or their index cannot be read.
    """
    entry = _entry(folder, allow_pickle)
    return [folder / file for file in _read_index(entry)] if entry.suffix == ".json" else [entry]


def named_files(index: Path) -> list[str]:
    """The weight files that an index names.

    Raises:
        ModelError: it cannot be read, or names files outside of its folder.
    """
    return list(_read_index(index))


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file, by name.

    Raises:
        ModelError: it is damaged.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _LONGEST_HEADER):
                claim = (
                    f"its header claims {length} bytes" if size >= 8 else "a header takes 8 bytes at least"
                )
                raise _damaged(path, f"{claim}, the file has {size}")
            header = json.loads(file.read(length))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its header is no JSON") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no JSON object")
    header.pop("__metadata__", None)
    entries = {name: _entry_of(path, name, found) for name, found in header.items()}
    _check_places(path, entries, size - 8 - length)
    return entries


def _entry(folder: Path, allow_pickle: bool) -> Path:
    """The file that transformers begins with."""
    for name in (*SAFETENSORS, *(PICKLES if allow_pickle else ())):
        path = folder / name
        if path.is_symlink():
            _refuse_absent(path, "it should hold the weights")
        if path.is_file():
            return path
    if any((folder / name).is_file() for name in PICKLES):
        raise ModelError(
            f"{folder} holds pickled weights only, which can carry code: safetensors are expected. "
            "Convert them, or pass --allow-pickle (they are then read with weights_only)"
        )
    raise ModelError(f"no weights in {folder}: model.safetensors, one file or sharded, is expected")


def _refuse_absent(path: Path, why: str) -> None:
    if path.is_file():
        return
    found = f"is a link to {path.readlink()}, which is not there" if path.is_symlink() else "is not there"
    raise ModelError(f"{path} {found}, and {why}: a whole model is expected; copy or download it again")


def _read_index(path: Path) -> dict[str, list[str]]:
    """The files that an index names, with the tensors that each should hold."""
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({error}): an index in JSON is expected") from error
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise ModelError(
            f"{path} has no weight_map: an object that gives the file of every tensor is expected; "
            "copy or download the index again"
        )
    files: dict[str, list[str]] = {}
    for tensor, file in places.items():
        if not isinstance(file, str) or not _stays_inside(file):
            raise ModelError(
                f"{path} places {tensor} in {file!r}: the name of a file inside the folder is expected. "
                "Nothing was read; do not use a model whose origin you do not trust"
            )
        files.setdefault(file, []).append(tensor)
    return files


def _stays_inside(file: str) -> bool:
    parts = PurePosixPath(file).parts
    rooted = PurePosixPath(file).is_absolute() or bool(PureWindowsPath(file).anchor)
    return bool(parts) and not rooted and ".." not in parts and "\\" not in file


def _check_file(path: Path, tensors: list[str] | None, quantized: bool) -> None:
    """Look at one file, and whether it holds the tensors that an index gives it."""
    if path.suffix != ".safetensors":
        return
    entries = read_header(path)
    if tensors is not None:
        for absent in sorted(set(tensors) - entries.keys()):
            raise ModelError(
                f"{absent} is not in {path}, where the index places it: a whole model is expected; copy or download "
                "it again"
            )
        for unnamed in sorted(entries.keys() - set(tensors)):
            raise ModelError(
                f"{unnamed} in {path} is not where the index places it, if it names it at all: one index of all "
                "files is expected; copy or download the model again"
            )
    if not quantized:
        check_types(path, entries)


def check_types(path: Path, entries: dict[str, Entry]) -> None:
    """Only plain floating point is quantized; integers may be anything but a weight (masks, positions)."""
    for name, entry in entries.items():
        integer = entry.dtype[0] in "IUB" and entry.dtype != "BF16"
        matrix = name.endswith("weight") and len(entry.shape) > 1
        if entry.dtype not in _PLAIN and (matrix or not integer):
            raise ModelError(
                f"{name} in {path} has the type {_NAMES.get(entry.dtype, entry.dtype)}: weights in bfloat16, float16 "
                "or float32 are expected. If the model is quantized, take the original, or undo it with the "
                "library that made it and save the result in one of these types"
            )


def _entry_of(path: Path, name: str, found: Any) -> Entry:
    words: dict[str, Any] = found if isinstance(found, dict) else {}
    dtype, shape, offsets = (words.get(key) for key in ("dtype", "shape", "data_offsets"))
    if dtype not in _BITS:
        raise ModelError(
            f"{path} cannot be read: {name} has the unknown type {dtype!r}; weights in bfloat16, float16 or float32 "
            "are expected"
        )
    if not _is_counts(shape) or not _is_counts(offsets) or len(offsets) != 2:
        raise _damaged(path, f"{name} has the shape {shape} and the bytes {offsets}")
    begin, end = offsets
    if 8 * (end - begin) != prod(shape) * _BITS[dtype]:
        raise _damaged(path, f"{name}, {dtype} of shape {shape}, has {end - begin} bytes")
    return Entry(dtype, tuple(shape), begin, end)


def _is_counts(found: Any) -> TypeGuard[list[int]]:
    return isinstance(found, list) and all(type(number) is int and number >= 0 for number in found)


def _check_places(path: Path, entries: dict[str, Entry], there: int) -> None:
    """The tensors lie one after the other and fill the file."""
    needed = max((entry.end for entry in entries.values()), default=0)
    if needed > there:
        raise _damaged(path, f"its tensors take {needed} bytes, {there} are there")
    for before, (name, entry) in _neighbours(entries):
        if entry.begin < before:
            raise _damaged(path, f"the bytes of {name} are those of another tensor too")
        if entry.begin > before:
            raise _damaged(path, f"{entry.begin - before} bytes before {name} belong to no tensor")
    if needed < there:
        raise _damaged(path, f"{there - needed} bytes at its end belong to no tensor")


def _neighbours(entries: dict[str, Entry]) -> Iterator[tuple[int, tuple[str, Entry]]]:
    """Tensors in the order of their bytes, each with the end of the one before."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        yield end, (name, entry)
        end = entry.end


def _damaged(path: Path, found: str) -> ModelError:
    return ModelError(
        f"{path} cannot be read: {found}; a whole safetensors file is expected, copy or download it again"
    )
