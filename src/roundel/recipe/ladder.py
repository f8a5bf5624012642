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

# Iterations, samples of each, samples in all.
_LEARNED = (
    (0, 1, 24), (6, 1, 24), (12, 1, 24), (18, 1, 24), (24, 1, 24), (36, 1, 24), (48, 1, 32), (60, 1, 40), (80, 1, 48),
    (80, 2, 56), (100, 2, 64), (125, 2, 80), (150, 2, 96), (200, 2, 128), (200, 4, 192), (300, 4, 256), (400, 4, 320),
    (400, 8, 512), (600, 8, 512), (800, 8, 768), (1000, 8, 1024), (1000, 16, 1024),
)  # fmt: skip
_ROUNDED = tuple((0, 2, samples) for samples in (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512))


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
    ladder = [Work(*rung, 256) for rung in _LEARNED] if learned else [Work(*rung, 512) for rung in _ROUNDED]
    if reach is not None:
        ladder = [replace(rung, seqlen=min(rung.seqlen, reach)) for rung in ladder]
    if counted is not None:
        ladder = [replace(rung, samples=counted) for rung in ladder]
    elif available is not None:
        ladder = [replace(rung, samples=min(rung.samples, available)) for rung in ladder]
    return list(dict.fromkeys(ladder))


def step_size(iters: int) -> float:
    """Of rounding offsets in so many iterations of few samples: 0.01 codes, by which all weights move at once.

    In less than 50 iterations steps are longer, so that the sum of all (they fall to 0) is a quarter of a code, and in
    more than 200 shorter, so that it is one.
    """
    return min(max(iters / 100, 0.5), 2.0) / iters
