"""How much of a place is kept, where it holds more than is needed.

A file is run through once, whatever it is packed with and however it is encoded, and no more of it stays in memory than
may be needed. What stays comes from places spread evenly over all of it, so that the order drawn by the seed draws
from the whole: of every `stride` items (rows, or passages of running text) one is kept, and whenever they have become
too many, the stride is doubled and every second one goes. Which of the `stride` it is, the seed says: an item n is kept
where the last bits of n XOR r are zero, r drawn once; doubling looks at one bit more, so that what is kept then was
kept before. (To seek places in the file would be faster on huge ones, and worked neither for packed files nor for
tables, whose fields hold line ends; and a damaged file would be found out or not by luck.)

Where the order is to stay as it is (`shuffle: false`, and texts to measure on), the beginning is kept.
"""

import random
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

Item = TypeVar("Item")

# Characters kept for each token wanted: of common tokenizers and languages a token has 1 to 5.
_CHARACTERS = 8
# Characters of rows, and of running text, below which everything is kept.
_ROWS = 16 << 20
_RUNNING = 64 << 10
# The same of a beginning.
_BEGINNING = 2 << 20
# Characters of a passage for each token of a row, and at least.
_PASSAGE, _SHORTEST = 4, 256
# Characters read at a time where passages are not told apart.
_PIECE = 1 << 12


@dataclass(frozen=True, kw_only=True)
class Need:
    """How much text is needed.

    Attributes:
        tokens: in all.
        row: of a row; passages are about as long.
        seed: says which places the text comes from; None: it is the beginning.
        more: so many times as much as usual.
    """

    tokens: int
    row: int = 0
    seed: int | None = None
    more: int = 1

    @property
    def larger(self) -> "Need":
        """The same, and more of it: what was kept was not enough."""
        return replace(self, more=4 * self.more)

    @property
    def passage(self) -> int:
        """Characters of a passage of running text."""
        return _PIECE if self.seed is None else max(_SHORTEST, _PASSAGE * self.row)

    def most(self, rows: bool) -> int:
        """Characters that are kept at most, of rows or of running text."""
        least = _BEGINNING if self.seed is None else _ROWS if rows else _RUNNING
        return self.more * max(least, _CHARACTERS * self.tokens)


class Portion(Generic[Item]):
    """The items of a place that are kept.

    Args:
        most: characters; None: everything is kept.
        seed: for a portion spread over the place; None: its beginning.

    Attributes:
        seen: items so far.
        held: characters at most, at the same time.
        blank: items that were wanted, and in which nothing was.
        stride: one of so many items is kept.
        full: no more is needed.
    """

    def __init__(self, most: int | None = None, seed: int | None = None) -> None:
        self._most, self._spread = most, seed is not None
        self._draw = random.Random(seed).getrandbits(48) if seed is not None else 0
        self._items: list[tuple[int, int, Item]] = []
        self._size = self.seen = self.held = self.blank = 0
        self.stride = 1
        self.full = False

    @property
    def items(self) -> list[Item]:
        """What is kept, in its order."""
        return [item for _, _, item in self._items]

    @property
    def partly(self) -> bool:
        """Whether there was more."""
        return self.full or self.stride > 1

    def wants(self) -> bool:
        """Whether the next item is to be kept; to be asked once for every item."""
        self.seen += 1
        return self._at(self.seen - 1)

    def add(self, item: Item, size: int) -> None:
        """Keep the item that was asked for last.

        Args:
            item: a row or a passage.
            size: its characters.
        """
        if self._at(self.seen - 1):
            self._items.append((self.seen - 1, size, item))
            self._size += size
            self.held = max(self.held, self._size)
        if self._most is None or self._size <= self._most:
            return
        if not self._spread:
            self.full = True
            return
        while self._size > self._most and len(self._items) > 1:
            self.stride *= 2
            self._items = [kept for kept in self._items if self._at(kept[0])]
            self._size = sum(size for _, size, _ in self._items)

    def _at(self, number: int) -> bool:
        return (number ^ self._draw) % self.stride == 0
