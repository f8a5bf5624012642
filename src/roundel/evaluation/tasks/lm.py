"""lm-eval's HFLM on a model in memory, which is measured as it is: the model and its tokenizer stay untouched.

HFLM ties weights anew, switches to evaluation mode and gives a tokenizer without one a pad token. The first would undo
an output layer that was quantized apart from the embedding; the others would outlive the measurement.
"""

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lm_eval.models.huggingface import HFLM

from roundel.errors import ModelError
from roundel.model.text_path import text_model
from roundel.system.progress import Progress


class WatchedLM(HFLM):  # type: ignore[misc]
    """HFLM that tells of its requests and counts those that it cuts.

    Args:
        model: a causal language model.
        tokenizer: its own.
        batch_size: requests in one pass.
        progress: gets the requests.

    Attributes:
        title: what the requests are of, for the progress.
        cut: requests of each task since `start` that were longer than the model's positions.
        requests: all of each task since `start`.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, progress: Progress) -> None:
        own = copy.deepcopy(tokenizer)
        prefix = None
        if own.bos_token_id is None and own.eos_token_id is None:
            # HFLM would stop: nothing stands before an empty context.
            prefix = next((i for i in (own.pad_token_id, own.unk_token_id) if i is not None), 0)
        super().__init__(
            pretrained=text_model(model), tokenizer=own, batch_size=batch_size, prefix_token_id=prefix
        )
        self.progress = progress
        self.start("")

    def start(self, title: str) -> None:
        """Count anew."""
        self.title = title
        self.cut: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self._tasks: list[str] = []
        self._listening = False

    def answered(self, steps: int) -> None:
        """Called by HFLM's bars."""
        self.progress.check_stop()
        if self._listening:
            self.progress.advance(steps)

    @contextmanager
    def _stage(self, requests: int) -> Iterator[None]:
        with self.progress.stage(self.title, requests):
            self._listening = True
            try:
                yield
            finally:
                self._listening = False

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        """See HFLM."""
        self._tasks = [request.task_name for request in requests]
        with self._stage(len(requests)):
            return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        """See HFLM."""
        with self._stage(len(requests)):
            return super().generate_until(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        # Windows of a rolling likelihood are as long as the model has positions: none is cut.
        tasks = self._tasks if len(self._tasks) == len(requests) else []
        for task, (_, context, continuation) in zip(tasks, requests, strict=False):
            if len(continuation) > self.max_length:
                raise ModelError(
                    f"an answer of {task} has {len(continuation)} tokens, the model {self.max_length} positions: "
                    "a model with more of them, or another task, is expected"
                )
            self.cut[task] += len(context) + len(continuation) > self.max_length + 1
            self.requests[task] += 1
        self._tasks = []
        return super()._loglikelihood_tokens(requests, *args, **kwargs)


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """The model's modes are the same after it, and nothing ties its weights inside."""
    modes = [(module, module.training) for module in model.modules()]
    model.tie_weights = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del model.tie_weights
        for module, training in modes:
            module.training = training
