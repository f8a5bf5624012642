"""Which of transformers' auto classes opens a model: decided by its config, here and nowhere else.

A language model stands alone, or inside a model that sees or hears (Qwen2.5-VL, LLaVA, Voxtral): a decoder of text
beside towers for pictures or sound, whose outputs take the places of tokens. transformers opens the first by
`AutoModelForCausalLM`, the second by `AutoModelForMultimodalLM`. Some configs are known to both: the class by which a
checkpoint was saved (`architectures`) says which is meant, so that what is written is opened by its own class again.

Models whose text decoder reads the output of an encoder (T5, Florence-2) are neither: calibrated with text alone, its
cross-attention would see nothing.
"""

from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
)

from roundel.errors import ModelError

# In the order in which they are asked.
_MULTIMODAL = (
    (AutoModelForMultimodalLM, MODEL_FOR_MULTIMODAL_LM_MAPPING),
    (AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
)
_OWN_CODE = (AutoModelForCausalLM, AutoModelForMultimodalLM, AutoModelForImageTextToText)


def auto_class(config: Any, source: str = "the model") -> Any:
    """The auto class of transformers by which a model with a text decoder is opened.

    Args:
        config: the model's, as `AutoConfig` gives it.
        source: what the model is called in messages.

    Raises:
        ModelError: it has no text decoder, or one that reads an encoder's output.
    """
    own = getattr(config, "auto_map", None) or {}
    for known in _OWN_CODE:
        if known.__name__ in own:
            return known
    names = config.architectures or []
    for auto, mapping in _MULTIMODAL:
        if type(config) in mapping and _means(mapping[type(config)], names, config):
            if _reads_an_encoder(config) or _is_several(mapping[type(config)]):
                break
            return auto
    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and (not names or any(name in causal for name in names)):
        return AutoModelForCausalLM
    kind = ", ".join(names) or f"model type {config.model_type!r}"
    why = ", whose decoder reads what an encoder makes" if _reads_an_encoder(config) else ""
    if any(type(config) in mapping and _is_several(mapping[type(config)]) for _, mapping in _MULTIMODAL):
        why = ", several models in one without a forward pass; take the one that reads text, its thinker"
    raise ModelError(
        f"{source} is no causal language model ({kind}{why}): a decoder that transformers' AutoModelForCausalLM or "
        "AutoModelForMultimodalLM knows is expected"
    )


def _means(model_class: Any, names: list[str], config: Any) -> bool:
    """Whether a checkpoint is one of this class: it says so, or says nothing and no class for text alone is known."""
    if names:
        return model_class.__name__ in names
    return type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING


def _is_several(model_class: Any) -> bool:
    return model_class.forward is nn.Module.forward


def _reads_an_encoder(config: Any) -> bool:
    parts = [config, *(getattr(config, key, None) for key in ("text_config", "decoder"))]
    return any(getattr(part, "is_encoder_decoder", False) for part in parts)
