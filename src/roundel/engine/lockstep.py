"""Several recipes on one model, block by block in lockstep, so that what they have in common is computed once.

Recipes that read the same calibration data in the same way meet the same unquantized model: its stream of activations
is one, and every unquantized block is run on it once, for the targets of all and the second moments of its inputs. So
are Hessians, where they are those of that stream: in the first block, and everywhere with use_quant_input=false. What a
recipe's own quantized blocks make of the data is its own. Every recipe ends with the bytes that it has when run alone.
"""

from roundel.engine.job import Job
from roundel.engine.observations import ReferencePass
from roundel.engine.starts import shares_hessians
from roundel.engine.streams import Streams
from roundel.engine.walk import Walk, saying
from roundel.records.outcome import Outcome
from roundel.system.progress import Progress

_STOP_MESSAGE = "stopped; the same command goes on behind the blocks that every recipe has finished"


def quantize_in_lockstep(jobs: list[Job], progress: Progress) -> list[Outcome]:
    """Do jobs on the same model, each with its own copy of it.

    Args:
        jobs: what to do; each goes on where its own journal ends.
        progress: told of every block of every job.

    Raises:
        RoundelError: what a job raises ends all of them.
    """
    walks = [Walk(job) for job in jobs]
    count = len(jobs[0].stack)
    with (
        progress.stage(f"Quantizing blocks with {len(jobs)} recipes", count * len(jobs)),
        saying(lambda: _STOP_MESSAGE),
    ):
        for walk in walks:
            walk.resume()
            progress.advance(min(walk.finished, count))
        for index in range(count):
            waiting = [walk for walk in walks if walk.finished == index]
            for kin in _families(waiting):
                reference = _shared_reference(kin)
                for walk in kin:
                    walk.block(reference)
                    progress.advance(note=walk.job.recipe.name)
        for walk in walks:
            walk.head()
    return [walk.parts.outcome for walk in walks]


def _families(walks: list[Walk]) -> list[list[Walk]]:
    """Those that meet the same unquantized block with the same inputs, in the same arithmetic."""
    families: dict[object, list[Walk]] = {}
    for walk in walks:
        families.setdefault(_family(walk), []).append(walk)
    return list(families.values())


def _family(walk: Walk) -> object:
    job, recipe = walk.job, walk.job.recipe
    if walk.streams is None or walk.streams.original is None or job.tokens is None:
        return id(walk)
    if recipe.smooth is not None or recipe.kv_bits is not None:
        return id(walk)  # its blocks are changed before they are run, or run with a cache
    key = (job.tokens.shape, job.tokens.numpy().tobytes(), recipe.amp, recipe.batch_size)
    return (*key, recipe.low_gpu_mem_usage, frozenset(job.coverage.schemes))


def _shared_reference(kin: list[Walk]) -> ReferencePass | None:
    """One pass of the unquantized block for all of them; a single one makes its own."""
    if len(kin) == 1:
        return None
    leader = kin[0]
    assert leader.streams is not None
    original = leader.streams.original
    for walk in kin:
        assert walk.streams is not None
        # Each has found or made its own, with the same numbers: one is enough.
        first = walk.streams.quantized is walk.streams.original
        walk.streams = Streams(original, original if first else walk.streams.quantized)
    recipes = [walk.job.recipe for walk in kin]
    sharing = [walk for walk in kin if walk.streams and shares_hessians(walk.job, walk.streams)]
    return leader.reference(
        statistics=any(recipe.start == "search" for recipe in recipes),
        hessians=len(sharing) > 1,
    )
