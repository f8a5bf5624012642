"""How many words a packed stream of codes takes: what plans count with, before there is a tensor."""

WORD = 32


def packed_words(count: int, bits: int) -> int:
    """int32 words that `count` codes of `bits` bits take."""
    return -(-count * bits // WORD)
