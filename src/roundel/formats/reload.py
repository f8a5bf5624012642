"""The reload check: what a client will load is what was tuned, bit for bit.

The written folder is opened through transformers the way a user opens it. Every quantized Linear is compared
with its integers' dequantized weight, every other tensor with the one that was to be written. Where the dense model
would not fit into memory, it is opened with its weights left on disk, and read piece by piece. Of packed weights
transformers opens the folder without its tensors then (names and shapes must match its modules), and they are decoded
one Linear at a time by the code of the format's own library.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationStatus
from safetensors import safe_open
from transformers import AutoConfig

from roundel.errors import FormatError, ModelError
from roundel.formats.content import Content, Piece
from roundel.formats.shards import ShardReader, Tensors
from roundel.formatting import kind_and_line
from roundel.model.classes import auto_class
from roundel.model.experts import divide, joined
from roundel.model.linears import LinearView
from roundel.model.names import stored_tensors
from roundel.model.source import open_source
from roundel.model.turns import in_turn

_PACKED = QuantizationStatus.COMPRESSED
Decode = Callable[[ShardReader, str, Content], torch.Tensor]


def check_reload(folder: Path, content: Content, trust_remote_code: bool, decode: Decode | None) -> None:
    """Reopen `folder` and compare it with what was tuned.

    Args:
        folder: the written folder.
        content: what was written.
        trust_remote_code: as the source was opened.
        decode: the dense weight `[out, in]` of a Linear from the stored tensors, in the type in which a client
            computes; None: the stored weights are dense.

    Raises:
        FormatError: names the first tensor that is missing, left over, or different.
    """
    if content.whole:
        reloaded = _open(folder, content, trust_remote_code, None)
        unpack_model(reloaded)
        compare_model(reloaded, content)
    elif decode is None:
        compare_streamed(folder, content, trust_remote_code)
    else:
        _open(folder, content, trust_remote_code, "meta")
        compare_stored(ShardReader(folder), content, decode)


def unpack_model(model: Any) -> None:
    """Unpack the weights of compressed-tensors, as transformers would at the first forward pass."""
    quantizer: Any = getattr(model, "hf_quantizer", None)
    compressor = getattr(quantizer, "compressor", None)
    packed = any(
        getattr(m, "quantization_status", None) is _PACKED for m in model.modules()
    )  # no pass so far
    if compressor is not None and packed and not quantizer.quantization_config.dequantize:
        compressor.decompress_model(model)


@in_turn
def _open(folder: Path, content: Content, trust_remote_code: bool, device: str | None) -> Any:
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        reloaded, info = auto_class(config, folder.name).from_pretrained(
            str(folder),
            dtype="auto",
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            device_map=device,
        )
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise FormatError(
            f"the written model cannot be reopened ({kind_and_line(error)}); please report this"
        ) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        found = set(info[kind]) - content.extra.reported
        if found:
            some = ", ".join(map(str, sorted(found)[:3]))
            raise FormatError(f"transformers reloads {folder.name} with {kind.replace('_', ' ')}: {some}")
    return reloaded


def compare_model(reloaded: Any, content: Content) -> None:
    """Compare a reopened model with what was tuned.

    Raises:
        FormatError: names the first tensor that differs.
    """
    divide(reloaded)
    found = reloaded.state_dict()
    for piece in content.read_pieces():
        for name, weight in piece.weights.items():
            view = LinearView(name, reloaded.get_submodule(name))
            compare(f"{name}.weight", view.weight, weight.dequantize(view.weight.dtype))
        for name, tensor in piece.others.items():
            if name in found:
                compare(name, found[name], tensor)
            elif name.removesuffix(".weight").rpartition(".")[0] in content.stacks:
                view = LinearView(name, reloaded.get_submodule(name.removesuffix(".weight")))
                compare(name, view.weight, tensor)


def compare_stored(stored: ShardReader, content: Content, decode: Decode) -> None:
    """Compare stored tensors with what was tuned, one at a time.

    Raises:
        FormatError: names the first tensor that differs.
    """
    for piece in content.written_pieces():
        for name, weight in piece.weights.items():
            found = decode(stored, name, content)
            compare(f"{name}.weight", found, weight.dequantize(found.dtype))
        for name, tensor in stored_tensors(content.model, piece.others).items():
            if name in stored:  # tied tensors are stored once; transformers found none missing
                compare(name, stored[name], tensor)


def compare_streamed(folder: Path, content: Content, trust_remote_code: bool) -> None:
    """Compare a folder of dense weights with what was tuned, a piece at a time.

    Raises:
        FormatError: names the first tensor that differs.
    """
    with TemporaryDirectory(dir=folder.parent, prefix="reading-") as converted:
        try:
            source = open_source(
                str(folder),
                trust_remote_code=trust_remote_code,
                quantized=True,
                stream_with=Path(converted),
                blocks=content.blocks,
            )
        except ModelError as error:
            raise FormatError(
                f"the written model cannot be reopened ({error}); please report this"
            ) from error
        for piece in content.read_pieces():
            for name, tensor in dense_tensors(piece, content).items():
                compare(name, source.storage.tensor(source.model, name), tensor)


def dense_tensors(piece: Piece, content: Content) -> Tensors:
    """A piece of the model as its state has it, with dequantized weights in the model's own type and layout."""
    dense = {}
    for name, weight in piece.weights.items():
        view = content.view(name)
        tensor = weight.dequantize(view.parameter.dtype)
        dense[f"{name}.weight"] = tensor.t().contiguous() if view.transposed else tensor
    return joined({**piece.others, **dense}, content.stacks)


def check_extra(folder: Path, extra: Mapping[str, torch.Tensor]) -> None:
    """Compare the tensors that were carried over with those of the source, one at a time.

    Raises:
        FormatError: names the first one that is missing or differs.
    """
    files = [safe_open(path, "pt") for path in sorted(folder.glob("*.safetensors"))] if extra else []
    home = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - not a dict
    for name, tensor in extra.items():
        if name not in home:
            raise FormatError(f"{name} is not in the written files; please report this")
        # Bytes, as NaN is no different from itself here.
        found, wanted = home[name].get_tensor(name), tensor
        if found.dtype == wanted.dtype and found.shape == wanted.shape:
            found, wanted = (t.contiguous().flatten().view(torch.uint8) for t in (found, wanted))
        compare(name, found, wanted)


def compare(name: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Raise FormatError unless two tensors are the same, bit for bit and in type."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        difference = f"{tuple(found.shape)} {found.dtype} instead of {tuple(wanted.shape)} {wanted.dtype}"
    elif torch.equal(found, wanted):
        return
    else:
        difference = f"largest difference {float((found.float() - wanted.float()).abs().max()):.3g}"
    raise FormatError(
        f"the written model differs from the tuned one in {name}: {difference}; please report this"
    )
