"""What formats of other clients carry: a plain grid for every group of a Linear, and no more."""

from collections.abc import Collection
from typing import Any

from roundel.errors import FormatError
from roundel.formats.container import Layer
from roundel.model.experts import stacks_in
from roundel.model.names import Part, stored_parts

WAYS_OUT = "use --format roundel, or --format dense"


def refuse_beyond_the_grid(
    layers: Collection[Layer], container: str, *, order: bool = False, embeddings: bool = False
) -> None:
    """Refuse layers that are no Linear, and what does not fit into codes, scales and integer zero points.

    Args:
        layers: that are to be quantized.
        container: that is to carry them.
        order: it carries codes in another order than the input channels.
        embeddings: it carries embeddings.

    Raises:
        FormatError: names the layer and a way out.
    """
    for layer in layers:
        if layer.kind == "Conv1D":
            raise FormatError(
                f"{layer.name} is a Conv1D; {container} carries Linear layers only: use --format dense"
            )
        if layer.embedding and not embeddings:
            raise FormatError(
                f"{layer.name} is an embedding, which clients of {container} read unquantized: leave embedding_bits "
                "out, or use --format gguf, roundel or dense"
            )
        scheme = layer.scheme
        found = (
            (
                scheme.super_block,
                "scales in super-blocks",
                f"set bits={scheme.bits} in place of {scheme.type}",
            ),
            (scheme.two_level, "scales or zero points on two levels", "leave scale_bits and zero_bits out"),
            (not scheme.round_zero, "real zero points", "set round_zero=true"),
            (layer.outliers, "outliers", "leave them out"),
            (
                layer.permuted and not order,
                "codes in another order than the input channels",
                "set order=group_aware or static_groups=true",
            ),
        )
        for present, what, way_out in found:
            if present:
                raise FormatError(
                    f"{layer.name} has {what}, which {container} does not carry: {way_out}, or {WAYS_OUT}"
                )


def parts_in_checkpoints(layers: Collection[Layer], model: Any, container: str) -> dict[str, list[Part]]:
    """As what checkpoints keep each layer.

    Raises:
        FormatError: they do not keep one as Linears.
    """
    parts = stored_parts(model, [layer.name for layer in layers], stacks_in(model))
    for layer in layers:
        if not parts[layer.name]:
            where = "in one tensor with the other experts" if layer.kind == "Expert" else "in another form"
            raise FormatError(
                f"{layer.name} is kept {where} by the checkpoints of {type(model).__name__}, and {container} carries "
                f"Linears only: {WAYS_OUT}"
            )
    return parts
