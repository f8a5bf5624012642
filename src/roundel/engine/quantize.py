"""The whole of Roundel's work on one screen: walk over the blocks, then the head and the embedding.

Several recipes on one model walk in lockstep, and share what they have in common (lockstep.py). Several ranks walk
together: each carries its own samples through every block. Where blocks do not depend on each other (all inputs are the
unquantized model's), and one recipe has a journal, every rank quantizes a block of its own instead (independent.py).
"""

from collections.abc import Sequence

from roundel.engine.independent import walk_in_rounds
from roundel.engine.job import Job
from roundel.engine.lockstep import families, shared_reference
from roundel.engine.walk import Walk, saying
from roundel.records.outcome import Outcome
from roundel.system.progress import Progress


def quantize_models(jobs: Sequence[Job], progress: Progress) -> list[Outcome]:
    """Quantize a model with one job, or copies of it with several, in place: Linears get the dequantized weights.

    Args:
        jobs: on the same model, each with its own copy; each goes on where its own journal ends.
        progress: gets every block of every job.

    Raises:
        NonFiniteError: NaN or infinity in weights, activations or losses, with the layer's name.
        Stopped: the work was asked to end.
    """
    walks, count = [Walk(job) for job in jobs], len(jobs[0].stack)
    alone = walks[0] if len(walks) == 1 else None
    recipes = "" if alone else f" with {len(jobs)} recipes"
    with (
        progress.stage(f"Quantizing blocks{recipes}", count * len(jobs)),
        saying(lambda: _stop_message(walks)),
    ):
        for walk in walks:
            walk.resume()
            progress.found(min(walk.finished, count))
        if alone is not None and alone.job.independent:
            walk_in_rounds(alone)
        for index in range(count):
            for family in families([walk for walk in walks if walk.finished == index]):
                reference = shared_reference(family)
                for walk in family:
                    walk.block(reference)
                    progress.advance(note="" if alone else walk.job.recipe.name)
        for walk in walks:
            walk.outside()
    return [walk.parts.outcome for walk in walks]


def _stop_message(walks: Sequence[Walk]) -> str:
    """How far the work is, where it was asked to end."""
    if len(walks) > 1:
        return "stopped; the same command goes on after the blocks that every recipe has finished"
    return walks[0].stop_message
