"""Quantized checkpoints, made of ordinary ones by a few plain lines per published form.

They are written from the formats' descriptions, by loops and shifts, and share no code with the readers.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
Pack = Callable[[str, torch.Tensor], Tensors]

NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ),
)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def rewritten(
    model: Path, folder: Path, pack: Pack, about: dict[str, Any], dtype: torch.dtype, **config: Any
) -> Path:
    """A copy of a model whose Linears are stored as `pack` says."""
    shutil.copytree(model, folder)
    tensors: Tensors = {}
    for name, tensor in load_file(model / "model.safetensors").items():
        linear = name.endswith(("_proj.weight", "_proj", "_proj_with_mqa.weight")) or ".fc" in name
        tensors |= pack(name, tensor) if linear and tensor.dim() > 1 else {name: tensor.to(dtype).clone()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    words = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    words |= {"quantization_config": about, "dtype": str(dtype).removeprefix("torch."), **config}
    (folder / "config.json").write_text(json.dumps(words), encoding="utf-8")
    return folder


def fp8(model: Path, folder: Path, block: tuple[int, int] = (32, 32), **config: Any) -> Path:
    """DeepSeek-V3's blocks."""

    def pack(name: str, weight: torch.Tensor) -> Tensors:
        rows, columns = block
        out, width = weight.shape
        scale = torch.empty(-(-out // rows), -(-width // columns))
        codes = torch.empty(out, width)
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                part = weight[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns].float()
                scale[i, j] = part.abs().max() / 448
                codes[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns] = part / scale[i, j]
        return {name: codes.to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}

    about = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": list(block),
    }
    return rewritten(model, folder, pack, about, torch.bfloat16, **config)


def mxfp4(model: Path, folder: Path) -> Path:
    """gpt-oss's experts; everything else stays as it is."""

    def pack(name: str, weight: torch.Tensor) -> Tensors:
        if ".experts." not in name:
            return {name: weight.bfloat16()}
        experts, width, out = weight.shape
        parts = weight.float().transpose(1, 2).reshape(experts, out, width // 32, 32)
        exponent = (parts.abs().amax(-1) / 6).log2().ceil().clamp(-120, 120)
        wanted = parts / exponent.exp2().unsqueeze(-1)
        table = torch.tensor([*E2M1, *(-v for v in E2M1)])
        codes = (wanted.unsqueeze(-1) - table).abs().argmin(-1).to(torch.uint8)
        blocks = codes[..., 0::2] | (codes[..., 1::2] << 4)
        return {f"{name}_blocks": blocks.contiguous(), f"{name}_scales": (exponent + 127).to(torch.uint8)}

    left = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    about = {"quant_method": "mxfp4", "modules_to_not_convert": left}
    return rewritten(model, folder, pack, about, torch.bfloat16)


def _codes(weight: torch.Tensor, bits: int, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [out, in], zeros and scales [out, in / group]."""
    parts = weight.float().unflatten(1, (-1, group))
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).half()
    zero = (-low / scale.float()).round().clamp(1, 2**bits - 1)
    codes = (parts / scale.float().unsqueeze(-1) + zero.unsqueeze(-1)).round().clamp(0, 2**bits - 1)
    return codes.flatten(1).int(), zero.int(), scale


def _stream(rows: list[list[int]], bits: int) -> torch.Tensor:
    """Rows of codes as rows of int32 words, bit after bit."""
    words = []
    for row in rows:
        number = 0
        for place, code in enumerate(row):
            number |= int(code) << (place * bits)
        count = len(row) * bits // 32
        words.append([(number >> (32 * w)) & 0xFFFFFFFF for w in range(count)])
    found = torch.tensor(words, dtype=torch.int64)
    return torch.where(found >= 2**31, found - 2**32, found).int()


def gptq(
    model: Path, folder: Path, bits: int = 4, group: int = 32, order: bool = False, **about: Any
) -> Path:
    """AutoGPTQ's layout."""

    def pack(name: str, weight: torch.Tensor) -> Tensors:
        owner = name.removesuffix(".weight")
        if weight.shape[0] * bits % 32:
            return {name: weight.half()}  # packers leave such a one out
        groups = torch.arange(weight.shape[1]) // group
        if order:  # channel j is the place[j]-th that was quantized
            place = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(0))
            groups = place // group
            codes, zero, scale = _codes(weight[:, place.argsort()], bits, group)
            codes = codes[:, place]
        else:
            codes, zero, scale = _codes(weight, bits, group)
        return {
            f"{owner}.qweight": _stream(codes.tolist(), bits).t().contiguous(),
            f"{owner}.qzeros": _stream(
                (zero.t() - (0 if about.get("checkpoint_format") == "gptq_v2" else 1)).tolist(), bits
            ),
            f"{owner}.scales": scale.t().contiguous(),
            f"{owner}.g_idx": groups.int(),
        }

    said = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "desc_act": order,
        "sym": False,
        **about,
    }
    return rewritten(model, folder, pack, said, torch.float16)


def awq(model: Path, folder: Path, group: int = 32, **about: Any) -> Path:
    """AutoAWQ's layout, version GEMM."""

    def mixed(codes: torch.Tensor) -> torch.Tensor:
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        rows = [
            [row[8 * word + order[i]] for word in range(len(row) // 8) for i in range(8)]
            for row in codes.tolist()
        ]
        return _stream(rows, 4)

    def pack(name: str, weight: torch.Tensor) -> Tensors:
        owner = name.removesuffix(".weight")
        codes, zero, scale = _codes(weight, 4, group)
        return {
            f"{owner}.qweight": mixed(codes.t()),
            f"{owner}.qzeros": mixed(zero.t()),
            f"{owner}.scales": scale.t().contiguous(),
        }

    said = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group,
        "version": "gemm",
        "zero_point": True,
        **about,
    }
    return rewritten(model, folder, pack, said, torch.float16)


def nf4(model: Path, folder: Path, *, nested: bool) -> Path:
    """bitsandbytes' four bits in blocks of 64, factors in one level or in two."""

    def pack(name: str, weight: torch.Tensor) -> Tensors:
        flat = weight.float().flatten()
        parts = torch.nn.functional.pad(flat, (0, -flat.numel() % 64)).view(-1, 64)
        absmax = parts.abs().amax(-1).clamp(min=1e-8)
        codes = ((parts / absmax.unsqueeze(-1)).unsqueeze(-1) - torch.tensor(NF4)).abs().argmin(-1)
        codes = codes.flatten()[: flat.numel()].to(torch.uint8)
        state: dict[str, Any] = {
            "quant_type": "nf4",
            "blocksize": 64,
            "dtype": "bfloat16",
            "shape": list(weight.shape),
        }
        packed = ((codes[0::2] << 4) | codes[1::2]).view(-1, 1)
        found = {name: packed, f"{name}.quant_map": torch.tensor(NF4)}
        if nested:
            offset = float(absmax.mean())
            outer = torch.nn.functional.pad(absmax - offset, (0, -len(absmax) % 256)).view(-1, 256)
            table = torch.linspace(-1, 1, 256)
            largest = outer.abs().amax(-1).clamp(min=1e-8)
            inner = ((outer / largest.unsqueeze(-1)).unsqueeze(-1) - table).abs().argmin(-1)
            found[f"{name}.absmax"] = inner.flatten()[: len(absmax)].to(torch.uint8)
            found[f"{name}.nested_absmax"], found[f"{name}.nested_quant_map"] = largest, table
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        else:
            found[f"{name}.absmax"] = absmax
        words = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        return found | {f"{name}.quant_state.bitsandbytes__nf4": words}

    about = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    about |= {"bnb_4bit_use_double_quant": nested, "bnb_4bit_compute_dtype": "bfloat16"}
    return rewritten(model, folder, pack, about, torch.bfloat16)


def int8(model: Path, folder: Path) -> Path:
    """LLM.int8()."""

    def pack(name: str, weight: torch.Tensor) -> Tensors:
        largest = weight.float().abs().amax(1)
        codes = (weight.float() * 127 / largest.view(-1, 1)).round().to(torch.int8)
        owner = name.removesuffix(".weight")
        form = torch.tensor(0, dtype=torch.uint8)
        return {name: codes, f"{owner}.SCB": largest, f"{owner}.weight_format": form}

    return rewritten(
        model, folder, pack, {"quant_method": "bitsandbytes", "load_in_8bit": True}, torch.float16
    )
