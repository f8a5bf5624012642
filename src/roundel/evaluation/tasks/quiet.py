"""lm-eval as a guest: no logs, no bars, no processes of its own, and the global random state as it was.

lm-eval seeds the global generators (0 for random, 1234 for numpy and torch), and tasks may draw from them; inside,
they have these seeds, so that figures are those of lm-eval's own command; after it, the caller's state is back.
Its bars become calls of `on_step`. Its bootstrap (of perplexities) forks a process per core and prints; the one here
draws the same resamples in the same order in this process.
"""

import logging
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

# Statistics that take milliseconds: a thousand resamples say as much as lm-eval's hundred thousand.
_SLOW = ("f1_score", "matthews_corrcoef")
# lm-eval's defaults.
RANDOM_SEED, OTHER_SEED = 0, 1234


@contextmanager
def seeded() -> Iterator[None]:
    """lm-eval's seeds inside, the state as it was after it."""
    state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        random.seed(RANDOM_SEED)
        np.random.seed(OTHER_SEED)
        torch.manual_seed(OTHER_SEED)
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)


@contextmanager
def quiet(on_step: Callable[[int], None] = lambda steps: None) -> Iterator[None]:
    """No output of lm-eval, datasets or tokenizers inside.

    Args:
        on_step: told how many requests the model has answered since the last call.
    """
    import datasets
    import lm_eval.api.metrics
    import lm_eval.api.model
    import lm_eval.api.task
    import lm_eval.models.huggingface

    with ExitStack() as restore:
        restore.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for name in ("lm_eval", "transformers", "datasets"):
            logger = logging.getLogger(name)
            restore.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        if not datasets.utils.are_progress_bars_disabled():
            restore.callback(datasets.utils.enable_progress_bars)
            datasets.utils.disable_progress_bars()
        for module, name, new in (
            (lm_eval.api.model, "tqdm", _Bar),
            (lm_eval.api.task, "tqdm", _Bar),
            (lm_eval.models.huggingface, "tqdm", partial(_Bar, on_step=on_step)),
            (lm_eval.api.metrics, "bootstrap_stderr", _bootstrap),
        ):
            restore.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, new)
        yield


class _Bar:
    """What lm-eval uses of a tqdm bar."""

    def __init__(
        self,
        iterable: Iterable[Any] = (),
        *,
        on_step: Callable[[int], None] = lambda steps: None,
        **appearance: Any,
    ) -> None:
        self.iterable, self.on_step = iterable, on_step

    def __iter__(self) -> Iterator[Any]:
        return iter(self.iterable)

    def update(self, steps: int = 1) -> None:
        self.on_step(steps)

    def close(self) -> None:
        pass


def _bootstrap(statistic: Callable[[Any], float], values: Sequence[Any], iters: int) -> float:
    """Standard error by lm-eval's resamples: chunks of 1000, chunk i seeded with i."""
    from lm_eval.api.metrics import _bootstrap_internal, sample_stddev

    if statistic.__name__ in _SLOW:
        iters = min(iters, 1000)
    chunk = min(1000, iters)
    drawn: list[float] = []
    for number in range(iters // chunk):
        drawn += _bootstrap_internal(statistic, chunk)((number, values))
    return float(sample_stddev(drawn))
