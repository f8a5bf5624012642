"""Several recipes on one model, block by block in lockstep, so that what they have in common is computed once.

Recipes that read the same calibration data in the same way meet the same unquantized model: its stream of activations
is one, and every unquantized block is run on it once, for the targets of all and the second moments of its inputs. So
are Hessians, where they are those of that stream: in the first block, and everywhere with use_quant_input=false. What a
recipe's own quantized blocks make of the data is its own. Every recipe ends with the bytes that it has when run alone.
"""

from collections.abc import Sequence

from roundel.engine.observations import ReferencePass
from roundel.engine.starts import shares_hessians
from roundel.engine.streams import Streams
from roundel.engine.walk import Walk


def families(walks: Sequence[Walk]) -> list[list[Walk]]:
    """Those that meet the same unquantized block with the same inputs, in the same arithmetic."""
    found: dict[object, list[Walk]] = {}
    for walk in walks:
        found.setdefault(_family(walk), []).append(walk)
    return list(found.values())


def _family(walk: Walk) -> object:
    job, recipe = walk.job, walk.job.recipe
    if walk.streams is None or walk.streams.original is None or job.tokens is None:
        return id(walk)
    if recipe.smooth is not None or recipe.kv_bits is not None:
        return id(walk)  # its blocks are changed before they are run, or run with a cache
    key = (job.tokens.shape, job.tokens.numpy().tobytes(), recipe.amp, recipe.batch_size)
    return (*key, recipe.low_gpu_mem_usage, str(job.model.dtype), frozenset(job.coverage.schemes))


def shared_reference(family: list[Walk]) -> ReferencePass | None:
    """One pass of the unquantized block for all of them; a single one makes its own."""
    if len(family) == 1:
        return None
    leader = family[0]
    assert leader.streams is not None
    original = leader.streams.original
    for walk in family:
        assert walk.streams is not None
        # Each has found or made its own, with the same numbers: one is enough.
        first = walk.streams.quantized is walk.streams.original
        walk.streams = Streams(original, original if first else walk.streams.quantized)
    recipes = [walk.job.recipe for walk in family]
    sharing = [walk for walk in family if walk.streams and shares_hessians(walk.job, walk.streams)]
    return leader.reference(
        statistics=any(recipe.start == "search" for recipe in recipes),
        hessians=len(sharing) > 1,
    )
