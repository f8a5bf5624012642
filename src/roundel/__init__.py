"""Roundel: post-training weight quantization of causal language models by learned rounding.

    import roundel
    roundel.quantize("path/to/model", "autoround-w4g128", output="smaller")
    print(roundel.evaluate("smaller", reference="path/to/model", text="held-out.txt"))

After the import, transformers opens folders in Roundel's own container, too (workflows/hf_quantizer.py).

Names are imported at first use: torch and transformers take seconds, which `import roundel` should not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from roundel.system import forks  # noqa: F401 - it has to watch from now on
from roundel.system.when_imported import when_imported

if TYPE_CHECKING:
    from roundel.api import (
        Quantized,
        bench,
        chat,
        compare,
        evaluate,
        generate,
        inspect,
        load,
        plan,
        quantize,
        sweep,
    )
    from roundel.engine.streams import StreamOptions
    from roundel.errors import RoundelError
    from roundel.evaluation.quality import Evaluation
    from roundel.folders import export, push, read_integers, render_report
    from roundel.grid.quantized_weight import QuantizedWeight
    from roundel.grid.scheme import Scheme
    from roundel.recipe import Recipe
    from roundel.system.progress import Progress

__all__ = [
    "Evaluation",
    "Progress",
    "Quantized",
    "QuantizedWeight",
    "Recipe",
    "RoundelError",
    "Scheme",
    "StreamOptions",
    "bench",
    "chat",
    "compare",
    "evaluate",
    "export",
    "generate",
    "inspect",
    "load",
    "plan",
    "push",
    "quantize",
    "read_integers",
    "render_report",
    "sweep",
]

_HOMES = {
    "Evaluation": "evaluation.quality",
    "Progress": "system.progress",
    "QuantizedWeight": "grid.quantized_weight",
    "Recipe": "recipe",
    "RoundelError": "errors",
    "Scheme": "grid.scheme",
    "StreamOptions": "engine.streams",
    **dict.fromkeys(("export", "push", "read_integers", "render_report"), "folders"),
}

when_imported("transformers.quantizers.auto", lambda: import_module("roundel.workflows.hf_quantizer"))


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'roundel' has no attribute {name!r}")
    return getattr(import_module(f"roundel.{_HOMES.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return __all__
