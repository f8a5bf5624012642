"""How a packed weight lies in memory: what the kernels read (src/kernels/matrix.h), for every processor the same.

Rows come in tiles of 16, columns in units of 4. The 64 codes of a unit lie next to each other, row after row, so that
a vector holds 4 neighbouring columns of several rows: four activations, repeated, are its factors, and no sum ever
runs across a vector. 8 units are a chunk, 32 columns, whose codes are stored together in planes of 4 bits or fewer:

    2 = 2    3 = 3    4 = 4    5 = 4 + 1    6 = 4 + 2    7 = 4 + 3    8 = 4 + 4

A plane of w bits is w vectors of 64 bytes; vector i holds units i * 8/w, i * 8/w + 1, ... in its fields from the low
bits up. Of 3 bits it holds units 2i and 2i + 1, and in its two highest bits the bits 2i and 2i + 1 of units 6 and 7.

Groups begin where a block does: 32 columns, or 16 or 8 for groups that are no wider; what is left of a group's last
block is padding, which activations of zero meet. Statistics are `[tiles, groups, 16]`.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from roundel.grid.scheme import Scheme

TILE_ROWS = 16
UNIT = 4
CHUNK_UNITS = 8
CHUNK = UNIT * CHUNK_UNITS
_UNIT_BYTES = TILE_ROWS * UNIT

_PLANES = {
    2: ((2, 0),),
    3: ((3, 0),),
    4: ((4, 0),),
    5: ((4, 0), (1, 4)),
    6: ((4, 0), (2, 4)),
    7: ((4, 0), (3, 4)),
    8: ((4, 0), (4, 4)),
}
"""Of each width: (bits of a plane, where they are in the code)."""


@dataclass(frozen=True)
class Layout:
    """Of one weight `[rows, columns]`.

    Attributes:
        rows, columns: out and in.
        scheme: its grid.
    """

    rows: int
    columns: int
    scheme: Scheme

    @property
    def tiles(self) -> int:
        """Of 16 rows."""
        return -(-self.rows // TILE_ROWS)

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return self.scheme.width(self.columns)

    @property
    def block_units(self) -> int:
        """Units of a block: columns that share a scale of the activations, and never two groups."""
        return 8 if self.group > 16 else 4 if self.group > 8 else 2

    @property
    def group_columns(self) -> int:
        """Columns of a group with its padding."""
        width = UNIT * self.block_units
        return -(-self.group // width) * width

    @property
    def chunks(self) -> int:
        """Of 32 columns: a row's last group ends with the chunk that it needs, the others have all their padding."""
        before = self.scheme.groups(self.columns) - 1
        return -(-(before * self.group_columns + self.columns - before * self.group) // CHUNK)

    @property
    def groups(self) -> int:
        """Of a row, padding among them where a chunk holds several."""
        return -(-self.chunks * CHUNK // self.group_columns)

    @property
    def dimensions(self) -> dict[str, int]:
        """What the extension is told of it, by the names in src/kernels/matrix.h."""
        return {
            "rows": self.rows,
            "columns": self.columns,
            "bits": self.scheme.bits,
            "group": self.group,
            "block_units": self.block_units,
            "groups": self.groups,
            "chunks": self.chunks,
        }

    def pack_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes `[rows, columns]` uint8 of some tiles as `[tiles, chunks, 64 bits]` uint8."""
        rows = codes.shape[0]
        padded = F.pad(self.with_padding(codes), (0, 0, 0, -rows % TILE_ROWS))
        units = padded.view(-1, TILE_ROWS, self.chunks, CHUNK_UNITS, UNIT).permute(0, 2, 3, 1, 4)
        units = units.reshape(-1, self.chunks, CHUNK_UNITS, _UNIT_BYTES)
        planes = [
            _plane((units >> place) & (2**width - 1), width) for width, place in _PLANES[self.scheme.bits]
        ]
        return torch.cat(planes, 2).view(len(units), self.chunks, -1)

    def unpack_codes(self, packed: torch.Tensor) -> torch.Tensor:
        """Undo `pack_codes`: `[16 tiles, columns]` uint8, rows of padding among them."""
        vectors = packed.view(-1, self.chunks, self.scheme.bits, _UNIT_BYTES)
        units: torch.Tensor | None = None
        first = 0
        for width, place in _PLANES[self.scheme.bits]:
            plane = vectors[:, :, first : first + width]
            first += width
            part = _units(plane, width) << place
            units = part if units is None else units | part
        assert units is not None
        rows = units.view(-1, self.chunks, CHUNK_UNITS, TILE_ROWS, UNIT).permute(0, 3, 1, 2, 4)
        return self.without_padding(rows.reshape(len(vectors) * TILE_ROWS, -1))

    def with_padding(self, columns: torch.Tensor) -> torch.Tensor:
        """`[..., columns]` in the order of the codes, with zeros for the padding: `[..., 32 chunks]`."""
        front = columns.shape[:-1]
        used = self.scheme.groups(self.columns)
        groups = F.pad(columns, (0, used * self.group - self.columns)).view(*front, used, self.group)
        padded = F.pad(groups, (0, self.group_columns - self.group)).reshape(
            *front, used * self.group_columns
        )
        return F.pad(padded, (0, self.chunks * CHUNK - padded.shape[-1]))

    def without_padding(self, padded: torch.Tensor) -> torch.Tensor:
        """Undo `with_padding`."""
        front = padded.shape[:-1]
        padded = F.pad(padded, (0, self.groups * self.group_columns - self.chunks * CHUNK))
        groups = padded.reshape(*front, self.groups, self.group_columns)[..., : self.group]
        return groups.reshape(*front, self.groups * self.group)[..., : self.columns]

    def pack_statistic(self, statistic: torch.Tensor) -> torch.Tensor:
        """One number for each row and group, `[rows, G]`, as `[tiles, groups, 16]`; zeros for the padding."""
        missing = self.groups - self.scheme.groups(self.columns)
        return self.in_tiles(F.pad(statistic, (0, missing)))

    def unpack_statistic(self, packed: torch.Tensor) -> torch.Tensor:
        """Undo `pack_statistic`."""
        return self.in_rows(packed)[:, : self.scheme.groups(self.columns)].contiguous()

    def in_tiles(self, statistic: torch.Tensor) -> torch.Tensor:
        padded = F.pad(statistic, (0, 0, 0, -self.rows % TILE_ROWS))
        return padded.view(self.tiles, TILE_ROWS, -1).transpose(1, 2).contiguous()

    def in_rows(self, packed: torch.Tensor) -> torch.Tensor:
        return packed.transpose(1, 2).reshape(self.tiles * TILE_ROWS, -1)[: self.rows]


def _plane(units: torch.Tensor, width: int) -> torch.Tensor:
    """Codes of `width` bits, `[tiles, chunks, 8, 64]`, as vectors of bytes, `[tiles, chunks, width, 64]`."""
    if width == 3:
        pairs = units[:, :, 0::2] | (units[:, :, 1::2] << 3)
        last = pairs[:, :, 3:]
        parts = torch.cat([last << 6, (last >> 2) << 6, (last >> 4) << 6], 2)
        return pairs[:, :, :3] | parts
    fields = units.unflatten(2, (width, 8 // width))
    plane = fields[:, :, :, 0]
    for field in range(1, 8 // width):
        plane = plane | (fields[:, :, :, field] << (field * width))
    return plane


def _units(plane: torch.Tensor, width: int) -> torch.Tensor:
    """Undo `_plane`."""
    if width == 3:
        spare = plane >> 6
        last = spare[:, :, 0:1] | (spare[:, :, 1:2] << 2) | (spare[:, :, 2:3] << 4)
        pairs = torch.cat([plane & 63, last], 2)
        return torch.stack([pairs & 7, pairs >> 3], 3).flatten(2, 3)
    fields = [(plane >> (width * field)) & (2**width - 1) for field in range(8 // width)]
    return torch.stack(fields, 3).flatten(2, 3)


@lru_cache(maxsize=1024)
def layout_of(text: str) -> Layout:
    """The layout that `describe` made a text of, as operators take it."""
    rows, columns, scheme = text.split(" ", 2)
    return Layout(int(rows), int(columns), Scheme.model_validate_json(scheme))


def describe(layout: Layout) -> str:
    """A layout as text."""
    return f"{layout.rows} {layout.columns} {layout.scheme.model_dump_json(exclude_defaults=True)}"
