"""In which order a file has the rows of a matrix.

An order is `[n]` int64: row k in the file is row `order[k]` of the model's matrix. All of them are permutations of the
rows of a matrix, or of a part of it.
"""

import torch


def in_pairs(rows: int, heads: int) -> torch.Tensor:
    """Of every head, a row of its first half and one of its second in turn.

    Rotary embeddings turn two numbers of a head by one angle. transformers takes number i and number i + half,
    llama.cpp (for the architectures of its `LLAMA_ROPE_TYPE_NORM`) takes neighbours.

    Args:
        rows: of the matrix.
        heads: in which these come one after the other.
    """
    return torch.arange(rows).view(heads, 2, -1).transpose(1, 2).flatten()


def by_kind(heads: int, sizes: tuple[int, ...]) -> torch.Tensor:
    """All queries, then all keys, then all values, where the model has them head by head, or group by group.

    Args:
        heads: or groups, in which the rows come one after the other.
        sizes: how many rows of each kind a head or a group has, in order.
    """
    numbers = torch.arange(heads * sum(sizes)).view(heads, -1)
    return torch.cat([part.flatten() for part in numbers.split(list(sizes), dim=1)])


def between(first: int, last: int, step: int = 1) -> torch.Tensor:
    """The rows from `first` on, up to before `last`."""
    return torch.arange(first, last, step)
