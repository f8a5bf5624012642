"""A head that shares the embedding's weight gets one of its own, so that it can be quantized by itself."""

from typing import Any

import torch

from roundel.model.blocks import BlockStack
from roundel.model.linears import LinearView
from roundel.model.storage import Storage
from roundel.model.text_path import text_model


def untie_head(model: Any, head: LinearView, storage: Storage, stack: BlockStack) -> None:
    """Give a tied head a copy of the weight, and say so in the config; nothing is done to one that is not tied.

    Args:
        model: changed in place.
        head: its output head.
        storage: where its weights are.
        stack: its decoder blocks.
    """
    if head.parameter is not text_model(model).get_input_embeddings().weight:
        return
    with storage.around(model, stack):
        weight = head.parameter.detach().clone()
        for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
            config.tie_word_embeddings = False
        head.module.weight = torch.nn.Parameter(weight, requires_grad=False)
        storage.untied(f"{head.name}.weight")
