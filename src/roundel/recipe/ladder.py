"""Where time goes best: a ladder of work, for a run that may take so long and no longer.

In a short time many small iterations do more than few large ones, and samples of 512 tokens no more than those of 256
(docs/performance.md, on two models). Methods that learn nothing take little time for a token, and their second moments
want many.
"""

from dataclasses import replace

from roundel.recipe.work import Work

# What a limit of time chooses.
CHOSEN_KEYS = ("iters", "nsamples", "seqlen", "batch_size")
# What a run on a CPU does where nothing says how much: minutes for 100 M parameters. (Recipes are as their authors
# published them, for accelerators.)
LEARNED_ON_CPU = {"iters": 100, "nsamples": 64, "seqlen": 256, "batch_size": 2}
ROUNDED_ON_CPU = {"nsamples": 128, "seqlen": 512, "batch_size": 2}

# Samples of an iteration, and the iterations.
_LEARNED = (
    (1, (0, 6, 12, 18, 24, 30, 36, 42, 48, 54, 60, 70, 80, 90, 100, 112, 125, 140)),
    (2, (80, 90, 100, 112, 125, 140, 160, 180, 200, 225, 250, 280, 315, 355, 400)),
    (4, (225, 250, 280, 315, 355, 400, 450, 500, 560, 630, 710, 800)),
    (8, (450, 500, 560, 630, 710, 800, 900, 1000)),
)
_LEAST_SAMPLES = 24
_ROUNDED = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


def rungs(
    *, learned: bool, counted: int | None = None, available: int | None = None, reach: int | None = None
) -> list[Work]:
    """From the least to the most.

    Args:
        learned: whether parameters are tuned.
        counted: samples, where the sources say how many they give.
        available: samples that the data suffice for, where they end.
        reach: tokens that the model can look at, if there is a limit.
    """
    ladder = _learned() if learned else [Work(0, 2, samples, 512) for samples in _ROUNDED]
    if reach is not None:
        ladder = [replace(rung, seqlen=min(rung.seqlen, reach)) for rung in ladder]
    if counted is not None:
        ladder = [replace(rung, samples=counted) for rung in ladder]
    elif available is not None:
        ladder = [replace(rung, samples=min(rung.samples, available)) for rung in ladder]
    return list(dict.fromkeys(ladder))


def _learned() -> list[Work]:
    return [
        Work(iters, minibatch, _samples(iters * minibatch), 256)
        for minibatch, sizes in _LEARNED
        for iters in sizes
    ]


def _samples(drawn: int) -> int:
    """How many there are of which so many are drawn: twice as many are drawn from 1.7 times as many."""
    return max(_LEAST_SAMPLES, 8 * round(0.18 * drawn**0.75))


def step_size(iters: int, bits: int) -> float:
    """Of rounding offsets in so many iterations of few samples: 0.01 codes, by which all weights move at once.

    Steps fall to 0. Together they are a quarter of a code at least, and at most half of one, or a whole one at 3 bits
    and fewer.
    """
    return min(max(iters / 100, 0.5), 2.0 if bits <= 3 else 1.0) / iters
