"""The `spqr` container that transformers reads (its kernels want a CUDA device).

3-bit codes, groups of 16, scales and zero points of 3 bits in tiles of 16 rows, no bias. Tensors of a Linear
P [out, in], tiles I of 16 rows and J of 16 columns:

    P.dense_weights  int64 [out in / 16]   word ((I in / 16) + J) 16 + k holds row k of tile (I, J):
                                           bits 0-2 scale code, 3-5 zero code, 6+3l code l, 54-61 byte k // 2 of the
                                           tile's fp16 statistics  ss | zs << 16 | sz << 32 | zz << 48
    P.row_offsets    int32 [out + 1]       outliers, compressed sparse rows
    P.col_vals       int32 [n]             fp16 value << 16 | column; the value is ADDED to the dequantized code
    P.in_perm        int32 [in / 2]        two 16-bit input channels, the even position low; empty = as they come

Read as s = ss (w_s - sz), z = zs (w_z - zz), W^ = s (w - z) + value. The kernel computes this in fp16; the rounding
that it adds at run time is its own.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import SpQRConfig

from roundel.activations.scheme import Activations
from roundel.errors import FormatError
from roundel.formats.container import Integers, Layer, OfFolders
from roundel.formats.content import Content, Piece
from roundel.formats.decoded import Decoded
from roundel.formats.readers import Readers
from roundel.formats.reload import compare_stored
from roundel.formats.shards import ShardReader, Tensors, write_model
from roundel.formats.source_files import SourceFiles
from roundel.grid.outliers import Outliers
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.grid.two_level import Tiles
from roundel.model.linears import LinearView, linears_in

_BITS, _TILE = 3, 16
_WIDEST = 32767
_CODE = 2**_BITS - 1
_STATISTICS_AT = (_TILE + 2) * _BITS


class Spqr(OfFolders):
    """Writes transformers' SpQR files."""

    name = "spqr"
    others: torch.dtype | None = torch.float16

    def check(self, layers: list[Layer], model: Any, activations: Activations, files: SourceFiles) -> None:
        """Refuse whatever the kernels do not read.

        Raises:
            FormatError: names the layer, what was found and what is expected.
        """
        if activations:
            raise FormatError(
                "transformers' spqr container carries no quantized activations: use --format roundel, or --format dense"
            )
        for layer in layers:
            out, width = layer.shape
            scheme = layer.scheme
            found = (scheme.bits, scheme.group_size, scheme.scale_bits, scheme.zero_bits, scheme.tile_rows)
            wanted = (_BITS, _TILE, _BITS, _BITS, _TILE)
            problem = None
            if layer.kind != "Linear":
                problem = f"is a {layer.kind}: Linear layers"
            elif layer.bias:
                problem = "has a bias: layers without"
            elif out % _TILE or width % _TILE:
                problem = f"is {out}x{width}: multiples of {_TILE}"
            elif width > _WIDEST:
                problem = f"has {width} inputs: at most {_WIDEST}"
            elif found != wanted or scheme.scale_dtype != "float16":
                problem = (
                    f"has bits, group_size, scale_bits, zero_bits, tile_rows = {', '.join(map(str, found))} and "
                    f"{scheme.scale_dtype} statistics: {', '.join(map(str, wanted))} and float16"
                )
            if problem:
                raise FormatError(
                    f"{layer.name} {problem} are what transformers' spqr container carries; "
                    "use --format roundel, or --format dense"
                )

    def readers(self, layers: list[Layer], model: Any, activations: Activations) -> Readers:
        """Its kernels want CUDA."""
        return Readers(("roundel", "transformers with CUDA"))

    def write(self, folder: Path, content: Content) -> None:
        """Write config.json and safetensors; other floating tensors become float16, as the client demands."""
        model = content.model
        shapes: dict[str, int] = {}
        for piece in content.read_pieces():
            for name, weight in piece.weights.items():
                shapes |= {f"{name}.{part}.shape": t.numel() for part, t in pack_weight(weight).items()}
        left = [f"{view.name}.weight" for view in linears_in(model, "") if view.name not in content.schemes]
        left += [f"{name}.weight" for name in content.extra.linears]
        model.config.quantization_config = SpQRConfig(
            bits=_BITS, beta1=_TILE, beta2=_TILE, shapes=shapes, modules_to_not_convert=left
        ).to_dict()
        try:
            write_model(folder, model, map(_piece_tensors, content.written_pieces()), extra=content.extra)
        finally:
            # The model in memory holds ordinary weights.
            del model.config.quantization_config
        # transformers writes the type of the model in memory, and refuses SpQR files of another than float16.
        path = folder / "config.json"
        written = json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float16"}
        path.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")

    def verify(self, folder: Path, content: Content, trust_remote_code: bool) -> None:
        """Decode the written tensors and compare; transformers opens such files on a CUDA device only."""
        halves = replace(content, read_pieces=lambda: map(_in_halves, content.written_pieces()), types=None)
        compare_stored(ShardReader(folder), halves, _decode)

    def decoded(self, folder: Path, trust_remote_code: bool, *, streamed: bool) -> Decoded | None:
        """In the client's float16; transformers wants a CUDA device."""
        return read_decoded(folder)

    def integers(self, folder: Path, model: Any, schemes: Mapping[str, Scheme]) -> Integers:
        """Unpacked."""
        stored = ShardReader(folder)

        def weight(name: str) -> QuantizedWeight:
            tensors = {f"{name}.{part}": tensor for part, tensor in stored.below(name).items()}
            found = unpack_weight(tensors, name, LinearView(name, model.get_submodule(name)).shape)
            return replace(found, scheme=schemes[name])

        return weight


def _decode(stored: ShardReader, name: str, content: Content) -> torch.Tensor:
    tensors = {f"{name}.{part}": tensor for part, tensor in stored.below(name).items()}
    return unpack_weight(tensors, name, content.view(name).shape).dequantize()


def read_decoded(folder: Path) -> Decoded:
    """The tensors of a folder, dequantized when they are read, in the client's float16.

    Raises:
        ModelError: it cannot be read.
    """
    stored = ShardReader(folder)
    linears = [
        name.removesuffix(".dense_weights") for name in stored.names if name.endswith(".dense_weights")
    ]

    def decode(name: str) -> torch.Tensor:
        tensors = {f"{name}.{part}": tensor for part, tensor in stored.below(name).items()}
        out = tensors[f"{name}.row_offsets"].numel() - 1
        shape = (out, tensors[f"{name}.dense_weights"].numel() * _TILE // out)
        return unpack_weight(tensors, name, shape).dequantize(torch.float16)

    return Decoded(stored, linears, decode, torch.float16)


def _in_halves(piece: Piece) -> Piece:
    others = {name: t.half() if t.is_floating_point() else t for name, t in piece.others.items()}
    return Piece(piece.weights, others)


def _piece_tensors(piece: Piece) -> Tensors:
    packed = {
        f"{name}.{part}": tensor
        for name, weight in piece.weights.items()
        for part, tensor in pack_weight(weight).items()
    }
    return {**_in_halves(piece).others, **packed}


def pack_weight(weight: QuantizedWeight) -> dict[str, torch.Tensor]:
    """The four tensors of one weight."""
    out, width = weight.shape
    scale, zero = weight.scale, weight.zero
    assert isinstance(scale, Tiles)
    assert isinstance(zero, Tiles)
    rows, groups = out // _TILE, width // _TILE
    words = scale.codes.long() | zero.codes.long() << _BITS  # [out, G]
    codes = weight.codes.view(out, groups, _TILE).long()
    for place in range(_TILE):
        words |= codes[:, :, place] << (2 + place) * _BITS
    # [T, G, 8] bytes, low byte of the scale's scale first; each goes into two neighbouring rows.
    halves = torch.stack([scale.scale, zero.scale, scale.zero, zero.zero], -1)
    statistics = halves.contiguous().view(torch.uint8).view(rows, groups, 8).long()
    tiles = words.view(rows, _TILE, groups).transpose(1, 2).contiguous()  # [T, G, 16]
    tiles |= statistics.repeat_interleave(2, -1) << _STATISTICS_AT
    offsets = torch.zeros(out + 1, dtype=torch.int32)
    col_vals = torch.zeros(0, dtype=torch.int32)
    if weight.outliers is not None:
        offsets[1:] = weight.outliers.counts.cumsum(0)
        values = weight.outliers.values.view(torch.int16).int()
        col_vals = values << 16 | weight.outliers.columns
    order = torch.zeros(0, dtype=torch.int32)
    if weight.order is not None:
        pairs = weight.order.view(-1, 2)
        order = (pairs[:, 0] | pairs[:, 1] << 16).to(torch.int32)
    return {"dense_weights": tiles.flatten(), "row_offsets": offsets, "col_vals": col_vals, "in_perm": order}


def unpack_weight(tensors: dict[str, torch.Tensor], name: str, shape: tuple[int, int]) -> QuantizedWeight:
    """Undo `pack_weight` for layer `name` of a file's tensors."""
    out, width = shape
    rows, groups = out // _TILE, width // _TILE
    tiles = tensors[f"{name}.dense_weights"].view(rows, groups, _TILE)
    statistics = (tiles[:, :, ::2] >> _STATISTICS_AT & 0xFF).to(torch.uint8).contiguous()
    halves = statistics.view(torch.float16)  # [T, G, 4]
    words = tiles.transpose(1, 2).reshape(out, groups)

    def field(place: int) -> torch.Tensor:
        return (words >> place * _BITS & _CODE).to(torch.uint8)

    def level(codes: torch.Tensor, place: int) -> Tiles:
        return Tiles(
            codes, halves[..., place].contiguous(), halves[..., place + 2].contiguous(), _BITS, _TILE
        )

    codes = torch.stack([field(2 + place) for place in range(_TILE)], -1).view(out, width)
    outliers = order = None
    col_vals, in_perm = tensors[f"{name}.col_vals"], tensors[f"{name}.in_perm"]
    if col_vals.numel():
        counts = tensors[f"{name}.row_offsets"].diff().to(torch.int32)
        values = (col_vals >> 16).to(torch.int16).view(torch.float16)
        outliers = Outliers(counts, col_vals & 0xFFFF, values, width)
    if in_perm.numel():
        order = torch.stack([in_perm & 0xFFFF, in_perm >> 16 & 0xFFFF], -1).flatten().long()
    scheme = Scheme(
        bits=_BITS, group_size=_TILE, round_zero=False, scale_bits=_BITS, zero_bits=_BITS, tile_rows=_TILE
    )
    return QuantizedWeight(codes, level(field(0), 0), level(field(1), 1), scheme, outliers, order)
