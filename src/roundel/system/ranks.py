"""The processes of one run: each has a share of the samples, and all agree on everything else.

torchrun starts them and says in the environment how they meet; torch.distributed carries tensors between them (gloo
between CPUs, the vendor's own library between accelerators). Rank r of W owns the samples r, r + W, r + 2 W, ... A
process that nobody started with others is a rank of one, for which everything here costs nothing.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save

from roundel.errors import RankError, RoundelError, Stopped

# One rank may work for hours (it checks the output, it writes calibration text) while the others wait. One that dies
# is noticed at once.
_PATIENCE = timedelta(days=2)


@dataclass(frozen=True)
class Ranks:
    """This process among the others.

    Attributes:
        number: of this process, from 0.
        size: how many there are.
    """

    number: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this one writes and speaks for all."""
        return self.number == 0

    @property
    def here(self) -> int:
        """How many of them are on this machine."""
        return min(self.size, int(os.environ.get("LOCAL_WORLD_SIZE", self.size)))

    def own(self, count: int) -> range:
        """Which of so many samples are this rank's."""
        return range(self.number, count, self.size)

    def mine(self, rows: Sequence[int]) -> tuple[list[int], list[int]]:
        """Of samples by their numbers: at which places this rank's are, and their numbers in its own share."""
        places = [place for place, row in enumerate(rows) if row % self.size == self.number]
        return places, [rows[place] // self.size for place in places]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place."""
        return self._reduce(tensor, dist.ReduceOp.SUM)

    def max(self, tensor: torch.Tensor) -> torch.Tensor:
        """The largest of all ranks, in place."""
        return self._reduce(tensor, dist.ReduceOp.MAX)

    def begin_sum(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """The same while other work goes on: what is returned waits for it."""
        if self.size == 1:
            return lambda: tensor
        dense = tensor.contiguous()
        with _connected():
            work = dist.all_reduce(dense, async_op=True)

        def wait() -> torch.Tensor:
            with _connected():
                work.wait()
            return dense

        return wait

    def any(self, flag: bool) -> bool:
        """Whether it holds on any rank."""
        return flag if self.size == 1 else bool(self.max(torch.tensor(int(flag))))

    def total(self, number: float) -> float:
        """The sum of a number over all ranks."""
        return number if self.size == 1 else float(self.sum(torch.tensor(number, dtype=torch.float64)))

    def in_order(self, values: Sequence[float], places: Sequence[int], count: int) -> list[float]:
        """Values of all ranks, each rank's at its places: sums of them do not depend on the number of ranks."""
        if self.size == 1:
            return list(values)
        rows = torch.tensor(values, dtype=torch.float64)
        summed: list[float] = self.rows_in_order(rows, places, count).tolist()
        return summed

    def rows_in_order(self, rows: torch.Tensor, places: Sequence[int], count: int) -> torch.Tensor:
        """Rows of all ranks, each rank's at its places: `[count, ...]` on all of them."""
        if self.size == 1:
            return rows
        found = rows.new_zeros(count, *rows.shape[1:])
        found[list(places)] = rows
        return self.sum(found)

    def broadcast(self, tensors: dict[str, torch.Tensor] | None, source: int = 0) -> dict[str, torch.Tensor]:
        """Tensors of one rank, on all of them; the others give None."""
        if self.size == 1:
            assert tensors is not None
            return tensors
        return load(self._broadcast_bytes(None if tensors is None else save(tensors), source))

    def broadcast_object(self, make: Callable[[], Any]) -> Any:
        """Plain data that the first rank makes, on all of them; so are its errors."""
        with self.raise_together():
            made = make() if self.first else None
        if self.size == 1:
            return made
        return json.loads(self._broadcast_bytes(json.dumps(made).encode() if self.first else None, 0))

    def check_stop(self, asked: bool) -> None:
        """All ranks end here if the work of any was asked to.

        Raises:
            Stopped: it was.
        """
        if self.any(asked):
            stopped = Stopped()
            stopped.everywhere = self.size > 1
            raise stopped

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        """All ranks come out of it together: without an error, or with that of the first rank that has one.

        Inside, a rank works on its own.

        Raises:
            RoundelError: any that a rank raised.
            RankError: another rank is gone.
        """
        if self.size == 1:
            yield
            return
        error: RoundelError | None = None
        try:
            yield
        except RankError:
            raise
        except RoundelError as raised:
            error = raised
        failed = torch.tensor(self.size if error is None else self.number)
        source = int(self._reduce(failed, dist.ReduceOp.MIN))
        if source == self.size:
            return
        words = None if error is None else json.dumps([type(error).__name__, str(error)]).encode()
        name, message = json.loads(self._broadcast_bytes(words, source))
        agreed = _kinds()[name](message)
        agreed.everywhere = True
        raise agreed from error

    def _reduce(self, tensor: torch.Tensor, operation: Any) -> torch.Tensor:
        if self.size > 1:
            with _connected():
                dist.all_reduce(tensor, operation)
        return tensor

    def _broadcast_bytes(self, content: bytes | None, source: int) -> bytes:
        length = torch.tensor(len(content) if content is not None and self.number == source else 0)
        with _connected():
            dist.broadcast(length, source)
            if self.number == source:
                assert content is not None
                buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            else:
                buffer = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(buffer, source)
        return buffer.numpy().tobytes()


ALONE = Ranks()


def init_ranks() -> Ranks:
    """This process among those that torchrun started with it; alone where it was not started so.

    Raises:
        RankError: the others do not come.
    """
    if not dist.is_available():
        return ALONE
    if not met():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return ALONE
        try:
            dist.init_process_group(timeout=_PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise RankError(
                f"rank {os.environ.get('RANK')} does not meet the others ({error}): start all of them with torchrun"
            ) from error
    return Ranks(dist.get_rank(), dist.get_world_size())


def destroy_ranks() -> None:
    """Take leave of the other ranks, if there are any."""
    if met():
        dist.destroy_process_group()


def met() -> bool:
    """Whether this process has joined others."""
    return dist.is_available() and dist.is_initialized()


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankError("another rank is gone, so this one stops too") from error


def _kinds() -> dict[str, Callable[[str], RoundelError]]:
    kinds: list[type[RoundelError]] = [RoundelError, *RoundelError.__subclasses__()]
    return {kind.__name__: kind for kind in kinds}
