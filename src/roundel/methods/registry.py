"""The methods by name, each with all that recipes, plans and commands have to know of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

MethodName = Literal["rtn", "gptq", "spqr", "signround", "autoround", "flexround", "lrq"]


@dataclass(frozen=True)
class Method:
    """Facts of a method.

    Attributes:
        defaults: keys of a recipe that it sets where the recipe is silent.
        learned: parameters are tuned by the trainer (`engine/trainer.py`).
        divisor: of a learned element-wise division: a number for each weight, or of low rank; none: offsets are tuned.
        tunes_ranges: ranges may be tuned beside what else is.
        feedback: rounds with error feedback by Hessians of the inputs; such a method can also be another one's start.
        outliers: may keep weights beside the grid.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    learned: bool = False
    divisor: Literal["none", "full", "low-rank"] = "none"
    tunes_ranges: bool = True
    feedback: bool = False
    outliers: bool = False

    @property
    def divides(self) -> bool:
        """Whether an element-wise division is learned."""
        return self.divisor != "none"


METHODS: dict[str, Method] = {
    "rtn": Method(defaults={"start": "minmax"}),
    "gptq": Method(feedback=True),
    "spqr": Method(
        defaults={
            "group_size": 16,
            "round_zero": False,
            "scale_bits": 4,
            "zero_bits": 4,
            "tile_rows": 32,
            "format": "roundel",
        },
        feedback=True,
        outliers=True,
    ),
    "signround": Method(
        # The values of the paper's first version.
        defaults={
            "start": "minmax",
            "loss": "mse",
            "iters": 400,
            "enable_minmax_tuning": False,
            "use_quant_input": False,
            "nsamples": 512,
            "seqlen": 512,
        },
        learned=True,
        tunes_ranges=False,
    ),
    "autoround": Method(learned=True),
    "flexround": Method(
        defaults={"optimizer": "adamw", "lr_schedule": "cosine"}, learned=True, divisor="full"
    ),
    "lrq": Method(defaults={"optimizer": "adamw", "lr_schedule": "cosine"}, learned=True, divisor="low-rank"),
}
assert METHODS.keys() == set(get_args(MethodName))
