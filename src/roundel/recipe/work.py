"""How much a run does: what its time depends on, and what a limit of time chooses."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from roundel.recipe.recipe import Recipe


@dataclass(frozen=True)
class Work:
    """An amount of work.

    Attributes:
        iters: iterations of each block.
        minibatch: samples of an iteration.
        samples: of calibration, held-out ones included.
        seqlen: tokens of a sample.
    """

    iters: int
    minibatch: int
    samples: int
    seqlen: int

    @classmethod
    def of(cls, recipe: "Recipe") -> "Work":
        """What a recipe asks for."""
        minibatch = (
            recipe.batch_size * recipe.gradient_accumulate_steps if recipe.tuned else recipe.batch_size
        )
        return cls(recipe.iters if recipe.tuned else 0, minibatch, recipe.nsamples, recipe.seqlen)
