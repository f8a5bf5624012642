"""Which form a quantization config speaks of."""

from collections.abc import Callable, Mapping
from typing import Any

from roundel.errors import ModelError
from roundel.model.stored.bitsandbytes import EightBit, FourBit
from roundel.model.stored.compressed import Compressed
from roundel.model.stored.form import Form
from roundel.model.stored.fp8 import Fp8
from roundel.model.stored.integers import Awq, Gptq
from roundel.model.stored.mxfp4 import Mxfp4

About = Mapping[str, Any]


def quantization_of(config: Any) -> Any:
    """The quantization config of a model's config, or of the language model's inside of it; None: there is none."""
    for part in (config, config.get_text_config()):
        found = getattr(part, "quantization_config", None) or getattr(part, "compression_config", None)
        if found:
            return found
    return None


def forget_quantization(config: Any) -> None:
    """What is opened with this config is not quantized any more."""
    for part in (config, config.get_text_config()):
        for key in ("quantization_config", "compression_config"):
            if hasattr(part, key):
                delattr(part, key)


def method_name(about: Any) -> str:
    """Of a quantization config, which may be an object, a mapping or nonsense."""
    name = about.get("quant_method") if isinstance(about, Mapping) else getattr(about, "quant_method", about)
    return str(getattr(name, "value", name) or "an unnamed method")


def find_form(source: str, about: Any) -> Form:
    """The form in which a quantized model stores its weights.

    Args:
        source: the model's name.
        about: its quantization config.

    Raises:
        ModelError: it is not one that is read.
    """
    if not isinstance(about, Mapping):
        about = about.to_dict() if hasattr(about, "to_dict") else {"quant_method": about}
    name = method_name(about)
    form = _FORMS.get(name)
    if form is None:
        raise ModelError(
            f"{source} is quantized already ({name}), in a form that is not read: the original, unquantized model is "
            f"expected, or one quantized by {', '.join(sorted(_FORMS))}"
        )
    try:
        return form(about)
    except ModelError as error:
        raise ModelError(f"{source} cannot be read: {error}") from error


def is_read(about: Any) -> bool:
    """Whether models of this quantization config can be read as originals."""
    return method_name(about) in _FORMS


def _gptq(about: About) -> Form:
    return Gptq(about, 0 if about.get("checkpoint_format") == "gptq_v2" else 1)


def _bitsandbytes(about: About) -> Form:
    return EightBit() if about.get("load_in_8bit") else FourBit(about)


def _auto_round(about: About) -> Form:
    packing = str(about.get("packing_format", ""))
    if packing.endswith("auto_gptq"):
        return Gptq(about, 1)
    if packing == "auto_round":
        return Gptq(about, 0)
    if packing.endswith("auto_awq"):
        return Awq(about)
    raise ModelError(
        f"AutoRound's packing_format {packing!r} is not read: auto_round, one that ends in auto_gptq or auto_awq, or "
        "the original model, is expected"
    )


def _mxfp4(about: About) -> Form:
    return Mxfp4()


_FORMS: dict[str, Callable[[About], Form]] = {
    "fp8": Fp8,
    "mxfp8": Fp8,
    "fbgemm_fp8": Fp8,
    "mxfp4": _mxfp4,
    "gptq": _gptq,
    "awq": Awq,
    "auto-round": _auto_round,
    "intel/auto-round": _auto_round,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": Compressed,
}
