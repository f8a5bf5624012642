"""Dense: ordinary weights of the model's own type, for anything that runs the original.

The rounding is in the values; nothing becomes smaller. For comparing methods, and for clients that read no
packed format. The integers lie beside them in files of their own (`roundel.read_integers`), which clients leave
alone: scales cannot be told from rounded weights afterwards.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from roundel.activations.scheme import Activations
from roundel.formats.container import Integers, Layer, OfFolders
from roundel.formats.content import Content, Piece
from roundel.formats.decoded import Decoded
from roundel.formats.integers import INTEGERS, IntegerFiles, check_integers, write_integer_files
from roundel.formats.readers import Readers
from roundel.formats.reload import check_reload, dense_tensors
from roundel.formats.shards import write_model
from roundel.formats.source_files import SourceFiles
from roundel.grid.scheme import Scheme


class Dense(OfFolders):
    """Writes dequantized weights."""

    name = "dense"

    def check(self, layers: list[Layer], model: Any, activations: Activations, files: SourceFiles) -> None:
        """Dense weights carry every setting; activations are quantized by Roundel alone."""

    def readers(self, layers: list[Layer], model: Any, activations: Activations) -> Readers:
        """Whatever runs the original."""
        hint = "Activations are quantized by roundel alone" if activations else ""
        return Readers(("whatever opens the original",), hint)

    def write(self, folder: Path, content: Content) -> None:
        """Save the dequantized weights in the model's type, and the integers."""
        parts = (dense_tensors(piece, content) for piece in content.written_pieces())
        write_model(folder, content.model, parts, extra=content.extra)
        only_integers = (Piece(piece.weights) for piece in content.read_pieces())
        write_integer_files(folder, INTEGERS, content.model, only_integers)

    def verify(self, folder: Path, content: Content, trust_remote_code: bool) -> None:
        """Reopen the folder through transformers, and read the integers back."""
        check_integers(folder, INTEGERS, content)
        check_reload(folder, content, trust_remote_code, None)

    def decoded(self, folder: Path, trust_remote_code: bool, *, streamed: bool) -> Decoded | None:
        """An ordinary checkpoint."""
        return None

    def integers(self, folder: Path, model: Any, schemes: Mapping[str, Scheme]) -> Integers:
        """Those that lie beside the weights."""
        return IntegerFiles(folder, INTEGERS).weight
