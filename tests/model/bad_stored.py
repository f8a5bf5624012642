"""Models that are quantized already, in forms that are not read or contradict themselves; rows of `The model`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bad_inputs.box import UP, WEIGHTS, Box, Change, edit_tensors
from bad_inputs.case import Arrange
from bad_inputs.commands import quantize
from zoo import zoo_model
from zoo.quantized import awq, fp8, gptq, int8, mxfp4, nf4


def packed(make: Callable[[Path, Path], Path], change: Change, of: str = "llama") -> Arrange:
    """A model that others quantized, with changed tensors."""

    def arrange(box: Box) -> list[Any]:
        model = make(zoo_model(of), box / "model")
        edit_tensors(model / WEIGHTS, change)
        return quantize(model)

    return arrange


STORED = [
    (
        "GPTQ in the config, and no integers in the files",
        "no weight in its files is",
        lambda b: quantize(b.config(quantization_config={"quant_method": "gptq", "bits": 4})),
    ),
    (
        "nonsense as quantization_config",
        "says 'four' of its quantization",
        lambda b: quantize(b.config(quantization_config="four")),
    ),
    (
        "a form of quantization that is not read",
        "quantized already (aqlm), in a form that is not read",
        lambda b: quantize(b.config(quantization_config={"quant_method": "aqlm"})),
    ),
    (
        "bits that make no sense",
        "bits=16: 2 to 8 is expected",
        lambda b: quantize(b.config(quantization_config={"quant_method": "gptq", "bits": 16})),
    ),
    (
        "AWQ for one kernel",
        "of the version 'gemv'",
        lambda b: quantize(b.config(quantization_config={"quant_method": "awq", "version": "GEMV"})),
    ),
    (
        "AutoRound's own packing",
        "packing_format 'auto_round:llm_compressor' is not read",
        lambda b: quantize(
            b.config(
                quantization_config={
                    "quant_method": "auto-round",
                    "packing_format": "auto_round:llm_compressor",
                }
            )
        ),
    ),
    (
        "a block that makes no sense",
        "weight_block_size is 128",
        lambda b: quantize(b.config(quantization_config={"quant_method": "fp8", "weight_block_size": 128})),
    ),
    (
        "compressed-tensors without sense",
        "the quantization config of the model cannot be read",
        lambda b: quantize(
            b.config(quantization_config={"quant_method": "compressed-tensors", "config_groups": 4})
        ),
    ),
    ("FP8 without a scale", f"{UP}_scale_inv is missing", packed(fp8, lambda t: t.pop(f"{UP}_scale_inv"))),
    (
        "FP8 with a scale too many",
        "no weight of 8 bits that it belongs to",
        packed(fp8, lambda t: t.update({"lm_head.weight_scale_inv": torch.ones(1, 1)})),
    ),
    (
        "FP8 with scales of another block",
        f"{UP}_scale_inv has the shape (5, 5)",
        packed(fp8, lambda t: t.update({f"{UP}_scale_inv": torch.ones(5, 5)})),
    ),
    (
        "GPTQ without zero points",
        "qzeros is missing",
        packed(gptq, lambda t: t.pop(UP.replace("weight", "qzeros"))),
    ),
    (
        "GPTQ with scales of another shape",
        "scales has the shape (1, 7)",
        packed(gptq, lambda t: t.update({UP.replace("weight", "scales"): torch.ones(1, 7)})),
    ),
    (
        "GPTQ with a group too many",
        "its g_idx names a group that is not there",
        packed(gptq, lambda t: t[UP.replace("weight", "g_idx")].fill_(99)),
    ),
    (
        "AWQ without scales",
        "scales is missing",
        packed(awq, lambda t: t.pop(UP.replace("weight", "scales"))),
    ),
    (
        "NF4 whose state is no JSON",
        "quant_state.bitsandbytes__nf4 cannot be read",
        packed(
            lambda model, folder: nf4(model, folder, nested=False),
            lambda t: t[f"{UP}.quant_state.bitsandbytes__nf4"].fill_(0),
        ),
    ),
    (
        "LLM.int8() without the maxima of a weight's rows",
        "SCB is missing",
        packed(int8, lambda t: t.pop(UP.replace("weight", "SCB"))),
    ),
    (
        "MXFP4 without the exponents",
        "experts.down_proj_scales is missing",
        packed(mxfp4, lambda t: t.pop("model.layers.0.mlp.experts.down_proj_scales"), of="gpt_oss"),
    ),
    ("a compressed-tensors folder of Roundel's", "by Roundel", lambda b: quantize(b.quantized())),
    ("a folder in Roundel's container", "by Roundel", lambda b: quantize(b.quantized("roundel"))),
    ("a dense folder of Roundel's", "--allow-quantized", lambda b: quantize(b.quantized("dense"))),
]
