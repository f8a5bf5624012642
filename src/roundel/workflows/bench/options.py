"""What models are timed on, and how often."""

from dataclasses import dataclass, fields
from typing import TypedDict

from roundel.errors import RecipeError
from roundel.runtime.modes import Mode
from roundel.system.progress import Progress
from roundel.workflows.packed import Packing


class BenchArguments(TypedDict, total=False):
    """What `BenchOptions` are made of, for type checkers."""

    prompt: int
    context: int
    new: int
    rounds: int
    threads: int | None
    trust_remote_code: bool
    allow_pickle: bool
    packed: bool | None
    mode: Mode
    progress: Progress | None


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What models are timed on, and how often.

    Attributes:
        prompt: tokens that are read at once, for the speed of prompts.
        context: tokens in the KV cache before the first new one.
        new: tokens that are made one after the other behind it.
        rounds: how often each model does both; figures are medians over them.
        threads: of torch in each process; None: as many as the caller's torch has.
        trust_remote_code: run modeling code that comes with a model.
        allow_pickle: read pickled checkpoints.
        packed: quantized weights stay packed in memory and compute so (docs/runtime.md); False: they are decoded; None:
            packed where a model is stored in integers and there are kernels.
        mode: of packed weights: `exact` multiplies as with decoded ones, `fast` rounds activations to 8 bits.
        progress: gets every step; None is silent.
    """

    prompt: int = 512
    context: int = 128
    new: int = 64
    rounds: int = 5
    threads: int | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    packed: bool | None = None
    mode: Mode = "exact"
    progress: Progress | None = None

    def __post_init__(self) -> None:
        Packing(self.packed, self.mode)  # refuses what does not fit
        for entry in fields(self):
            if entry.type not in (int, int | None):
                continue
            value = getattr(self, entry.name)
            if value is None and entry.default is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise RecipeError(f"{entry.name}={value!r}: a whole number of 1 or more is expected")

    @property
    def listener(self) -> Progress:
        """Who gets the steps."""
        return self.progress or Progress()
