"""What of a model reads text alone: that is what is calibrated and measured.

Most models that see or hear take token ids without a picture like any language model. Some take nothing without one
(BLIP-2), and some are several models in one, without a forward pass of their own: of those it is the language model
inside, with its own embeddings and its own head, that is called.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from roundel.errors import ModelError
from roundel.formatting import kind_and_line

# What a class raises that misses a picture.
_MISSES = (TypeError, ValueError, AttributeError, LookupError)


def text_model(model: Any) -> Any:
    """The model itself, if its forward pass wants nothing but token ids; else the largest language model inside."""
    if _wants_text_alone(model):
        return model
    inside = [
        module
        for module in model.modules()
        if module is not model
        and isinstance(module, PreTrainedModel)
        and module.get_output_embeddings() is not None
        and _wants_text_alone(module)
    ]
    return max(inside, key=_size, default=model)


@contextmanager
def reading_text(model: Any) -> Iterator[None]:
    """A pass over text alone inside.

    Raises:
        ModelError: the class misses something.
    """
    try:
        yield
    except _MISSES as error:
        raise ModelError(
            f"{type(model).__name__} does not run on text alone ({kind_and_line(error)}): "
            "measuring, and methods that read data, are not supported on this architecture; "
            "--method rtn --set start=minmax is"
        ) from error


def _wants_text_alone(model: nn.Module) -> bool:
    if type(model).forward is nn.Module.forward:
        return False
    wanted = inspect.signature(type(model).forward).parameters.values()
    named = [p for p in wanted if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return all(p.default is not p.empty or p.name in ("self", "input_ids") for p in named)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
