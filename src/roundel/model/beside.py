"""A folder with whole weights and, beside them, a PEFT adapter: the whole model is what is opened.

Training with an adapter, or merging one, leaves such folders behind. Where `peft` is installed, transformers puts the
adapter into what it opens, without a word; where it is not, it reads the weights alone. What a folder holds must not
depend on what else is installed, and nobody can tell from the files whether the adapter is merged into the weights
already. So the weights are taken as they are, and a message says so. An adapter that is meant is named
itself, in a folder of its own.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.integrations import peft
from transformers.models.auto import auto_factory

from roundel.model.adapter import CONFIG, holds_whole_model
from roundel.model.place import Place
from roundel.model.turns import turn


def left_beside(place: Place) -> str:
    """What is to be said of an adapter that lies beside whole weights; empty where none does."""
    if place.is_gguf or not (place.path / CONFIG).is_file() or not holds_whole_model(place.path):
        return ""
    return (
        f"{place.name} holds a whole model and, beside it, an adapter ({CONFIG}): the model is taken as it is, without "
        "the adapter; to merge it, name a folder that holds the adapter alone, with --base (base=)"
    )


@contextmanager
def without_adapters() -> Iterator[None]:
    """transformers, in this thread, finds no adapter beside the weights that it opens."""
    mine = threading.get_ident()
    with turn():
        find = peft.find_adapter_config_file

        def find_none(*args: Any, **kwargs: Any) -> str | None:
            found: str | None = None if threading.get_ident() == mine else find(*args, **kwargs)
            return found

        for module in (peft, auto_factory):
            module.find_adapter_config_file = find_none
        try:
            yield
        finally:
            for module in (peft, auto_factory):
                module.find_adapter_config_file = find
