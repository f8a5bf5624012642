"""The whole of Roundel's work on one screen: walk over the blocks, then the head.

Several ranks walk together: each carries its own samples through every block. Where blocks do not depend on each other
(all inputs are the unquantized model's) and there is a journal, every rank quantizes a block of its own instead.
"""

from roundel.engine.independent import walk_in_rounds
from roundel.engine.job import Job
from roundel.engine.walk import Walk, saying
from roundel.records.outcome import Outcome


def quantize_model(job: Job) -> Outcome:
    """Quantize a model in place: its Linears end up with the dequantized weights.

    Raises:
        NonFiniteError: NaN or infinity in weights, activations or losses, with the layer's name.
        Stopped: the work was asked to end.
    """
    walk = Walk(job)
    count = len(job.stack)
    with job.progress.stage("Quantizing blocks", count), saying(lambda: walk.stop_message):
        walk.resume()
        job.progress.advance(min(walk.finished, count))
        if job.independent:
            walk_in_rounds(walk)
        while walk.finished < count:
            walk.block()
            job.progress.advance()
        walk.head()
    return walk.parts.outcome
