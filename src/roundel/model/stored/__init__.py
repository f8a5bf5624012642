"""Checkpoints that are quantized already, read as if they were not.

The newest models are published in eight or four bits only. Each way in which weights are stored is a `Form`, a file of
its own here: it says which tensors of the files make up which weight, and how the weight is had from them. Everything
behind it (names, experts, streaming, tensors without a place) sees an ordinary checkpoint.
"""

from roundel.model.stored.checkpoint import StoredCheckpoint
from roundel.model.stored.choice import find_form, quantization_of
from roundel.model.stored.form import Form

__all__ = ["Form", "StoredCheckpoint", "find_form", "quantization_of"]
