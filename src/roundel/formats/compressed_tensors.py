"""compressed-tensors: integers that transformers and vLLM load, `pack-quantized` or `int-quantized`.

`pack-quantized`, tensors of a Linear `P [out, in]` with groups of g, G = in / g (per channel: G = 1):

    P.weight_packed      int32 [out, ceil(in b / 32)]   codes, one little-endian bit stream per row
    P.weight_scale       [out, G]                       may be negative
    P.weight_shape       int64 [2]
    P.weight_zero_point  int32 [ceil(out b / 32), G]    asymmetric: zero points, packed along `out`

`int-quantized`, where all weights have 8 bits and activations are quantized (what kernels for W8A8 read):

    P.weight             int8 [out, in]                 code - 128
    P.weight_scale       [out, G]
    P.weight_zero_point  int8 [out, G]                  zero point - 128

With static activations both have P.input_scale [1] and, asymmetric, P.input_zero_point int8 [1]. The KV cache, one
dynamic scale per token and head, is `group` with groups of one head in this format.

An embedding is stored as a Linear is. transformers reads one with `dequantize: true` alone, so with the scheme of all
other layers (dense_at_load.py). vLLM has a kernel for embeddings, but its Llama does not ask for one.

The experts of a mixture are written under the names that its checkpoints have, gate and up apart, as vLLM reads them.
transformers reads them, and some other models, with `dequantize: true` alone (dense_at_load.py). Which of the forms a
file has: compressed_form.py.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme

from roundel.activations.attach import ActivationQuantizer
from roundel.activations.scheme import Activations, ActivationScheme
from roundel.errors import FormatError
from roundel.formats.compressed_form import Form, choose_form, readers_of, written_schemes
from roundel.formats.compressed_integers import compressed_weight
from roundel.formats.compressed_reader import read_decoded
from roundel.formats.container import Integers, Layer, OfFolders
from roundel.formats.content import Content, Piece
from roundel.formats.decoded import Decoded
from roundel.formats.dense_at_load import check_dense_at_load, opens_dense_only
from roundel.formats.joined_rows import joined_rows
from roundel.formats.left_out import left_out
from roundel.formats.plain_grid import WAYS_OUT, parts_in_checkpoints, refuse_beyond_the_grid
from roundel.formats.readers import Readers
from roundel.formats.reload import check_reload
from roundel.formats.shards import ShardReader, Tensors, write_model
from roundel.formats.source_files import SourceFiles
from roundel.formats.written_groups import repeat_groups, with_split
from roundel.grid.equivalent import as_plain
from roundel.grid.packing import pack
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.model.experts import stacks_in
from roundel.model.names import Part, stored_parts, stored_tensors
from roundel.model.text_path import text_model

_EMBEDDING_IN_VLLM = "Not in vLLM, whose models read embeddings unquantized: leave embedding_bits out"


class CompressedTensors(OfFolders):
    """Writes packed integers."""

    name = "compressed-tensors"

    def check(self, layers: list[Layer], model: Any, activations: Activations, files: SourceFiles) -> None:
        """Refuse layers that are no `nn.Linear`, anything beyond a plain grid, and what fits no kernel or form.

        Raises:
            FormatError: names the layer and a way out.
        """
        refuse_beyond_the_grid(layers, self.name, embeddings=True)
        _refuse_embedding(layers, model)
        _refuse_zero_points_of_parts(layers, model)
        if activations.kv and not hasattr(model.config, "num_key_value_heads"):
            raise FormatError(
                f"{type(model.config).__name__} has no num_key_value_heads, without which compressed-tensors reads no "
                "quantized KV cache: leave kv_bits out, use --format roundel, or --format dense"
            )
        schemes = _of_layers(layers, activations)
        dense = opens_dense_only(model, [layer.name for layer in layers])
        if dense:
            check_dense_at_load(layers, len(schemes), model, activations)
        choose_form(schemes, model.dtype, activations, dense=dense)

    def scheme_for(self, scheme: Scheme, in_features: int, dtype: torch.dtype) -> Scheme:
        """A plain grid."""
        return as_plain(scheme)

    def readers(self, layers: list[Layer], model: Any, activations: Activations) -> Readers:
        """By the written form."""
        schemes = _of_layers(layers, activations)
        dense = opens_dense_only(model, [layer.name for layer in layers])
        form = choose_form(schemes, model.dtype, activations, dense=dense)
        if any(layer.embedding for layer in layers):
            return Readers(("transformers",), _EMBEDDING_IN_VLLM)
        found = readers_of(
            form, schemes, activations, stacked=any(layer.kind == "Expert" for layer in layers)
        )
        return with_split(found, layers, schemes)

    def write(self, folder: Path, content: Content) -> None:
        """Write config.json and safetensors."""
        model = content.model
        schemes = _written_schemes(content)
        form = _form_of(content, schemes)
        parts: Iterable[Tensors] = (
            _piece_tensors(piece, content, schemes, form) for piece in content.written_pieces()
        )
        if content.activations is not None:
            parts = chain(parts, [_static_inputs(content.activations, content.parts)])
        model.config.quantization_config = _config(content, schemes, form)
        try:
            write_model(folder, model, parts, converted=True, extra=content.extra)
        finally:
            # The model in memory holds ordinary weights.
            del model.config.quantization_config

    def verify(self, folder: Path, content: Content, trust_remote_code: bool) -> None:
        """Reopen the folder through transformers."""
        schemes = _written_schemes(content)
        decode = partial(_decode, schemes, _form_of(content, schemes))
        check_reload(folder, content, trust_remote_code, decode)

    def decoded(self, folder: Path, trust_remote_code: bool, *, streamed: bool) -> Decoded | None:
        """By the format's own library; transformers opens a whole one."""
        return read_decoded(folder, trust_remote_code) if streamed else None

    def integers(self, folder: Path, model: Any, schemes: Mapping[str, Scheme]) -> Integers:
        """Unpacked."""
        stored, parts = ShardReader(folder), stored_parts(model, schemes, stacks_in(model))

        def weight(name: str) -> QuantizedWeight:
            found = (compressed_weight(stored.below(part.name), schemes[name]) for part in parts[name])
            return joined_rows(parts[name], found)

        return weight


def _decode(
    schemes: dict[str, Scheme], form: Form, stored: ShardReader, name: str, content: Content
) -> torch.Tensor:
    """As transformers loads it: unpacked by compressed-tensors, in the type in which the client multiplies."""
    dtype = content.model.dtype
    width = content.view(name).shape[1]
    block = schemes[name].width(width) if form.block and not schemes[name].sym else None
    scheme = QuantizationScheme(targets=[name], weights=_weights_config(schemes[name], block))
    compressor: Any = BaseCompressor.get_value_from_registry(form.name)
    found = torch.empty(content.view(name).shape, dtype=dtype)
    for part in content.parts[name]:
        tensors = stored.below(part.name)
        if not form.dequantize:
            tensors["weight_scale"] = tensors["weight_scale"].to(dtype)
        found[part.rows] = compressor.decompress(tensors, scheme)["weight"].to(dtype)
    return found


def _of_layers(layers: list[Layer], activations: Activations) -> set[Scheme]:
    schemes = {layer.name: layer.scheme for layer in layers}
    return set(
        written_schemes(schemes, {layer.name: layer.shape[1] for layer in layers}, activations).values()
    )


def _written_schemes(content: Content) -> dict[str, Scheme]:
    widths = {name: content.view(name).shape[1] for name in content.schemes}
    return written_schemes(content.schemes, widths, content.grids)


def _form_of(content: Content, schemes: dict[str, Scheme]) -> Form:
    dense = opens_dense_only(content.model, schemes)
    return choose_form(set(schemes.values()), content.model.dtype, content.grids, dense=dense)


def _piece_tensors(piece: Piece, content: Content, schemes: dict[str, Scheme], form: Form) -> Tensors:
    tensors = stored_tensors(content.model, piece.others) if piece.others else {}
    for name, weight in piece.weights.items():
        layer, parts = _layer_tensors(weight, schemes[name], form), content.parts[name]
        for part in parts:
            for key, tensor in (layer if len(parts) == 1 else _rows_of(layer, part.rows)).items():
                tensors[f"{part.name}.{key}"] = tensor
    return tensors


def _rows_of(layer: Tensors, rows: slice | torch.Tensor) -> Tensors:
    """Rows of a symmetric layer, as a layer."""
    found = {key: tensor[rows].contiguous() for key, tensor in layer.items() if key != "weight_shape"}
    shape = layer["weight_shape"].clone()
    shape[0] = len(found["weight_scale"])
    return {**found, "weight_shape": shape}


def _refuse_embedding(layers: list[Layer], model: Any) -> None:
    """But one of its own weight, on the grid of all other layers."""
    reader = text_model(model)
    head = reader.get_output_embeddings()
    tied = head is not None and head.weight is reader.get_input_embeddings().weight
    untied = any(model.get_submodule(layer.name) is head for layer in layers)
    for layer in layers:
        if layer.embedding and tied and not untied:
            raise FormatError(
                f"{layer.name} is also the weight of the output head, and compressed-tensors keeps what is quantized "
                "for each by itself: set head_bits as well, leave embedding_bits out, or use --format gguf, roundel or "
                "dense"
            )
        if layer.embedding and len({other.scheme for other in layers}) > 1:
            raise FormatError(
                f"{layer.name} is an embedding, which transformers reads in compressed-tensors with one grid for all "
                "layers only: give all the same bits, leave embedding_bits out, or use --format gguf, roundel or dense"
            )


def _refuse_zero_points_of_parts(layers: list[Layer], model: Any) -> None:
    parts = parts_in_checkpoints(layers, model, "compressed-tensors")
    for layer in layers:
        if len(parts[layer.name]) > 1 and not layer.scheme.sym:
            raise FormatError(
                f"{layer.name} has zero points and is kept in parts by the checkpoints of {type(model).__name__}: set "
                f"sym=true, {WAYS_OUT}"
            )


def _layer_tensors(weight: QuantizedWeight, written: Scheme, form: Form) -> dict[str, torch.Tensor]:
    bits = weight.scheme.bits
    assert isinstance(weight.scale, torch.Tensor)
    width = written.width(weight.shape[1])
    scale = repeat_groups(weight.scale, weight, width)
    tensors = {"weight_scale": scale.to(form.scale_dtype or scale.dtype)}
    if form.packed:
        tensors["weight_packed"] = pack(weight.codes, bits)
        tensors["weight_shape"] = torch.tensor(weight.shape, dtype=torch.int64)
    else:
        tensors["weight"] = _signed(weight.codes, weight.scheme)
    if isinstance(weight.zero, torch.Tensor):
        zero = repeat_groups(weight.zero, weight, width)
        if form.block or not form.packed:
            tensors["weight_zero_point"] = _signed(zero, weight.scheme)
        else:
            tensors["weight_zero_point"] = pack(zero.t(), bits).t().contiguous()
    return tensors


def _signed(codes: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    return (codes.to(torch.int16) - scheme.midpoint).to(torch.int8)


def _static_inputs(activations: ActivationQuantizer, names: dict[str, list[Part]]) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, grid in activations.static.items():
        stored = names[name][0].name
        tensors[f"{stored}.input_scale"] = torch.tensor([grid.scale], dtype=torch.float32)
        if activations.inputs is not None and not activations.inputs.sym:
            tensors[f"{stored}.input_zero_point"] = torch.tensor([grid.zero], dtype=torch.int8)
    return tensors


def _config(content: Content, schemes: dict[str, Scheme], form: Form) -> dict[str, Any]:
    model, activations = content.model, content.grids
    written = form.name
    reader = text_model(model)
    head, embedding = reader.get_output_embeddings(), reader.get_input_embeddings()
    members: dict[tuple[Scheme, int | None], list[str]] = {}
    for name, scheme in schemes.items():
        block = scheme.width(model.get_submodule(name).weight.shape[1]) if form.block else None
        members.setdefault((scheme, None if scheme.sym else block), []).append(name)
    groups = {}
    for number, ((scheme, block), names) in enumerate(members.items()):
        targets = names
        if len(members) == 1:
            # vLLM's output head is no Linear, no embedding is; they have to be named.
            named = [name for name in names if model.get_submodule(name) in (head, embedding)]
            targets = ["Linear", *(f"re:.*{name.rpartition('.')[2]}$" for name in named)]
        groups[f"group_{number}"] = {
            "targets": targets,
            "input_activations": _inputs_config(activations.inputs),
            "output_activations": None,
            "format": written,
            "weights": _weights_config(scheme, block),
        }
    config: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "format": written,
        "quantization_status": "compressed",
        "kv_cache_scheme": _kv_config(model, activations.kv),
        "ignore": left_out(content, schemes),
        "config_groups": groups,
    }
    if form.dequantize:
        config["dequantize"] = True
    return config


def _weights_config(scheme: Scheme, block: int | None) -> dict[str, Any]:
    """`block`: the width of the blocks in the block strategy."""
    weights = {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.sym,
        "strategy": "channel" if scheme.group_size == -1 else "group",
        "group_size": None if scheme.group_size == -1 else scheme.group_size,
        "dynamic": False,
        "actorder": None,
    }
    if block is not None:
        weights |= {"strategy": "block", "group_size": None, "block_structure": [1, block]}
    return weights


def _inputs_config(scheme: ActivationScheme | None) -> dict[str, Any] | None:
    if scheme is None:
        return None
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.sym,
        "strategy": "tensor" if scheme.static else "token",
        "dynamic": not scheme.static,
    }


def _kv_config(model: Any, scheme: ActivationScheme | None) -> dict[str, Any] | None:
    if scheme is None:
        return None
    config = model.config.get_text_config(decoder=True)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.sym,
        "strategy": "group",
        "group_size": width,
        "dynamic": True,
    }
