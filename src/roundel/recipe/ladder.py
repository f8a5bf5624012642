"""Where time goes best: a ladder of iterations and samples, for a run that may take so long and no longer.

In a short time many small iterations do more than few large ones, each on samples of their own (docs/performance.md, on
SmolLM2-135M): a sample is hardly seen twice before there are more than a hundred of them.
"""

from dataclasses import dataclass

# What a limit of time chooses.
CHOSEN_KEYS = ("iters", "nsamples", "seqlen", "batch_size")
# Tokens of a sample and samples of an iteration, on every rung.
SEQLEN, BATCH = 512, 2
# What a run on a CPU does where nothing says how much: minutes for 100 M parameters. (Recipes are as their authors
# published them, for accelerators.)
ON_CPU = {"iters": 100, "seqlen": SEQLEN, "batch_size": BATCH}


@dataclass(frozen=True)
class Rung:
    """An amount of work.

    Attributes:
        iters: iterations of each block.
        samples: that they are drawn from, held-out ones included.
    """

    iters: int
    samples: int


_LEARNED = (
    Rung(0, 24), Rung(5, 24), Rung(10, 32), Rung(15, 40), Rung(20, 48), Rung(25, 56), Rung(30, 64), Rung(40, 80),
    Rung(50, 96), Rung(60, 96), Rung(80, 112), Rung(100, 128), Rung(125, 144), Rung(150, 160), Rung(200, 192),
    Rung(250, 224), Rung(300, 256), Rung(400, 320), Rung(500, 384), Rung(600, 448), Rung(800, 512), Rung(1000, 512),
)  # fmt: skip
_NOT_LEARNED = tuple(Rung(0, samples) for samples in (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512))


def rungs(*, learned: bool, counted: int | None = None, available: int | None = None) -> list[Rung]:
    """From the least to the most.

    Args:
        learned: whether parameters are tuned.
        counted: samples, where the sources say how many they give.
        available: samples that the data suffice for, where they end.
    """
    ladder = _LEARNED if learned else _NOT_LEARNED

    def samples(rung: Rung) -> int:
        if counted is not None:
            return counted
        return rung.samples if available is None else min(rung.samples, available)

    return list(dict.fromkeys(Rung(rung.iters, samples(rung)) for rung in ladder))
