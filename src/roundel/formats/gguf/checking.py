"""Whether a layout is right: the tensors of a model, moved by it, are those of the file that the model was read from.

A wrong order of rows would give a file that loads and speaks nonsense. Where a model comes from a GGUF file that cannot
happen: its own tensors are compared with what the layout makes of them, one after the other, before anything is
written.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby

import torch

from roundel.errors import FormatError
from roundel.formats.gguf.layout import Layout, Place
from roundel.formats.gguf.moving import is_stack, moved

# Of numbers that transformers computes anew, a logarithm say: what two roundings may differ by.
_ROUNDING = 1e-6


def check_layout(
    layout: Layout,
    names: Iterable[str],
    read_model: Callable[[str], torch.Tensor],
    read_file: Callable[[str], torch.Tensor],
) -> None:
    """Refuse a layout that does not lead from a model to the file it was read from.

    Args:
        layout: of the model.
        names: of the model's tensors, those that experts share as one.
        read_model: a tensor by its name in the model, as `[out, in]` where it is a Linear's.
        read_file: a tensor by its name in the file, dequantized; KeyError where there is none.

    Raises:
        FormatError: with the name of the first tensor that differs.
    """
    for name in names:
        tensor = read_model(name).float()
        for file, places in _by_file(layout[name]):
            try:
                found = read_file(file)
            except KeyError:
                raise _wrong(name, f"the file has no {file}") from None
            for expected, place in _pieces(found, places):
                mine = moved(tensor, place, stacked=is_stack(name, layout[name]))
                difference = _difference(mine, expected, exact=not place.through)
                if difference:
                    raise _wrong(name, f"as {file} it {difference}")


def left_over(layout: Layout, names: Iterable[str]) -> list[str]:
    """The tensors of a file that no tensor of the model gives: tables of rotary factors, blocks that it does not run.

    Args:
        layout: of the model.
        names: of the file's tensors.
    """
    given = {place.name for places in layout.values() for place in places}
    return [name for name in names if name not in given]


def check_read(names: Iterable[str], blocks: int) -> None:
    """Refuse a file of which transformers has left out weights of blocks that it runs: biases of Llama, for example.

    Args:
        names: of the file's tensors that no tensor of the model gives.
        blocks: of the model.

    Raises:
        FormatError: with the name of the first.
    """
    for name in names:
        part = re.fullmatch(r"blk\.(\d+)\.(.+)\.(weight|bias)", name)
        if part is not None and int(part[1]) < blocks and "rope" not in part[2] and "rot_embd" not in part[2]:
            raise FormatError(
                f"the file has {name}, and transformers does not read it: the model that was opened is not the file's; "
                "take it from a folder of safetensors"
            )


def _by_file(places: list[Place]) -> Iterator[tuple[str, list[Place]]]:
    ordered = sorted(places, key=lambda place: place.name)
    for name, group in groupby(ordered, key=lambda place: place.name):
        yield name, list(group)


def _pieces(found: torch.Tensor, places: list[Place]) -> Iterator[tuple[torch.Tensor, Place]]:
    for place in places:
        yield (found if place.expert is None else found[place.expert]), place


def _difference(mine: torch.Tensor, expected: torch.Tensor, *, exact: bool) -> str:
    if mine.numel() != expected.numel():
        return f"has the shape {tuple(mine.shape)}, and {tuple(expected.shape)} is there"
    mine = mine.reshape(expected.shape)
    if torch.equal(mine, expected) if exact else torch.allclose(mine, expected, rtol=_ROUNDING, atol=0):
        return ""
    return f"differs in {int((mine != expected).sum())} of {mine.numel()} numbers"


def _wrong(name: str, what: str) -> FormatError:
    return FormatError(
        f"{name} cannot be written as a GGUF file has it: {what}; transformers reads this file in a way that Roundel "
        "does not know, or not as llama.cpp does. Nothing was written; take the model from a folder of safetensors"
    )
