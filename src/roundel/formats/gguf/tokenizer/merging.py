"""How llama.cpp cuts a text by scores: it merges the two neighbours whose union has the best one, over and over.

It knows no merges, so it also joins two tokens whose union a tokenizer would only make of two others.
"""

import heapq


def merged(text: str, scores: dict[str, float]) -> list[str]:
    """The pieces of a text.

    Args:
        text: with blanks as the vocabulary has them.
        scores: of the tokens, by their texts.
    """
    pieces: list[str] = list(text)
    after = list(range(1, len(pieces) + 1))
    before = list(range(-1, len(pieces) - 1))
    waiting: list[tuple[float, int, int, str]] = []

    def offer(left: int, right: int) -> None:
        if left >= 0 and right < len(pieces):
            union = pieces[left] + pieces[right]
            if union in scores:
                heapq.heappush(waiting, (-scores[union], left, right, union))

    for place in range(len(pieces) - 1):
        offer(place, place + 1)
    while waiting:
        _, left, right, union = heapq.heappop(waiting)
        if not pieces[left] or not pieces[right] or pieces[left] + pieces[right] != union:
            continue  # one of them was merged meanwhile
        pieces[left], pieces[right] = union, ""
        after[left] = after[right]
        if after[left] < len(pieces):
            before[after[left]] = left
        offer(before[left], left)
        offer(left, after[left])
    return [piece for piece in pieces if piece]
