"""The reload check: what a client will load is what was tuned, bit for bit.

The written folder is opened through transformers the way a user opens it. Every quantized Linear is compared
with its integers' dequantized weight, every other tensor with the model in memory.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from roundel.errors import FormatError
from roundel.grid import QuantizedWeight
from roundel.model.linears import LinearView


def check_reload(
    folder: Path, model: Any, weights: dict[str, QuantizedWeight], trust_remote_code: bool
) -> None:
    """Reopen `folder` and compare it with what was tuned.

    Args:
        folder: the written folder.
        model: the quantized model in memory.
        weights: the integers of each quantized Linear.
        trust_remote_code: as the source was opened.

    Raises:
        FormatError: names the first tensor that is missing, left over, or different.
    """
    try:
        reloaded, info = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype="auto", output_loading_info=True, trust_remote_code=trust_remote_code
        )
    except (RuntimeError, ValueError, KeyError, AttributeError) as error:
        raise FormatError(
            f"the written model cannot be reopened ({type(error).__name__}: {error}); please report this"
        ) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            some = ", ".join(map(str, sorted(info[kind])[:3]))
            raise FormatError(f"transformers reloads {folder.name} with {kind.replace('_', ' ')}: {some}")
    quantizer = getattr(reloaded, "hf_quantizer", None)
    if quantizer is not None and not quantizer.quantization_config.dequantize:
        # transformers would unpack the weights at the first forward pass.
        quantizer.compressor.decompress_model(reloaded)
    compare_models(reloaded, model, weights)


def compare_models(reloaded: Any, model: Any, weights: dict[str, QuantizedWeight]) -> None:
    """Compare a reopened model with the one in memory.

    Raises:
        FormatError: names the first tensor that differs.
    """
    for name, weight in weights.items():
        found = LinearView(name, reloaded.get_submodule(name)).weight
        compare(f"{name}.weight", found, weight.dequantize(found.dtype))
    ours = model.state_dict()
    quantized = {f"{name}.weight" for name in weights}
    for name, tensor in reloaded.state_dict().items():
        if name in ours and name not in quantized:
            compare(name, tensor, ours[name].cpu())


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
