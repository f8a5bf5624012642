"""What scales and zero points may be: any number of their type, or one of a tile's second level (two_level.py).

Either says which values lie around wanted ones, and how chosen ones are stored.
"""

from dataclasses import dataclass

import torch

from roundel.grid.scheme import Scheme
from roundel.grid.two_level import Tiles

# Scales that are tried where they are stored plainly, as shares of the range's.
_PLAIN_SHARES = (1.0, 0.95, 0.9, 0.84, 0.78, 0.7)
# Zero points that are tried where they are stored plainly, as distances from the range's, in codes.
_PLAIN_SHIFTS = (0.0, -0.3, 0.3, -0.6, 0.6, -1.0, 1.0)
# Ranges this much smaller than their place are a point: fp16 cannot tell their ends apart.
POINT = 2.0**-10


def least_step(dtype: torch.dtype) -> float:
    """Of a second level, as a share of its largest value: with less its offset may be more than the type has."""
    return 2 / torch.finfo(dtype).max


@dataclass
class PlainStatistic:
    """A statistic that is stored in `scale_dtype`: scales, which are positive, or zero points."""

    scheme: Scheme
    positive: bool

    def around(self, values: torch.Tensor, reach: int) -> torch.Tensor:
        """`[N, P]` to `[1, R, N, P]`: scales of shorter ranges, or zero points to either side."""
        if self.positive:
            shares = torch.tensor(
                _PLAIN_SHARES if reach else (1.0,), dtype=torch.float32, device=values.device
            )
            return self.scheme.round_scale(values * shares[:, None, None])[None]
        shifts = torch.tensor(_PLAIN_SHIFTS if reach else (0.0,), dtype=torch.float32, device=values.device)
        largest = torch.finfo(self.scheme.torch_dtype).max
        return (
            (values + shifts[:, None, None])
            .clamp(-largest, largest)
            .to(self.scheme.torch_dtype)
            .float()[None]
        )

    def pick(self, tiles: torch.Tensor) -> "PlainStatistic":
        return self

    def tiles(self, values: torch.Tensor, out: int) -> None:
        return None


@dataclass
class LevelStatistic:
    """Second-level grids of one column group, `step [S, T]` and `offset [S, T]` as stored."""

    step: torch.Tensor
    offset: torch.Tensor
    bits: int
    rows: int
    dtype: torch.dtype

    @classmethod
    def spanning(
        cls,
        values: torch.Tensor,
        scheme: Scheme,
        bits: int,
        shares: tuple[float, ...] = (1.0,),
        *,
        symmetric: bool = False,
    ) -> "LevelStatistic":
        """Grids over each tile's values `[P]`: from the smallest to the largest, or shares of that range."""
        tiles = values.view(-1, scheme.tile_rows)
        lo, hi = tiles.amin(1), tiles.amax(1)
        if symmetric:
            centre = torch.full_like(lo, scheme.levels / 2)
            half = torch.maximum(hi - centre, centre - lo)
        else:
            centre, half = (lo + hi) / 2, (hi - lo) / 2
        half = half * torch.tensor(shares, dtype=torch.float32, device=values.device)[:, None]
        lo, hi = centre - half, centre + half
        size = torch.maximum(lo.abs(), hi.abs())
        point = hi - lo <= POINT * size
        # A tile of equal statistics is exact: their value times (code 0 + 1).
        # Steps are not so small that the offset is too large for its type.
        wanted = torch.maximum((hi - lo) / (2**bits - 1), least_step(scheme.torch_dtype) * size)
        step = torch.where(point, centre.abs(), wanted)
        step = scheme.round_scale(step)
        offset = torch.where(point, -centre.sign(), -lo / step)
        return cls(step, offset.to(scheme.torch_dtype).float(), bits, scheme.tile_rows, scheme.torch_dtype)

    def around(self, values: torch.Tensor, reach: int) -> torch.Tensor:
        """The nearest statistics to `[N, P]` and their neighbours on every grid: `[S, R, N, P]`."""
        shifts = torch.arange(-reach, reach + 1, device=values.device)[:, None, None, None]
        codes = (self._codes(values)[:, None] + shifts).clamp_(0, 2**self.bits - 1)  # [S, R, N, T, rows]
        step, offset = self.step[:, None, None, :, None], self.offset[:, None, None, :, None]
        return codes.sub_(offset).mul_(step).flatten(-2)

    def _codes(self, values: torch.Tensor) -> torch.Tensor:
        """The nearest codes to `[N, P]`: `[S, N, T, rows]` fp32."""
        tiles = values.view(len(values), -1, self.rows) / self.step[:, None, :, None]
        return tiles.add_(self.offset[:, None, :, None]).round_().clamp_(0, 2**self.bits - 1)

    def pick(self, tiles: torch.Tensor) -> "LevelStatistic":
        """One grid, `tiles [T]` saying which for every tile."""
        step, offset = self.step.gather(0, tiles[None]), self.offset.gather(0, tiles[None])
        return LevelStatistic(step, offset, self.bits, self.rows, self.dtype)

    def tiles(self, values: torch.Tensor, out: int) -> Tiles:
        """The stored form of values `[1, P]` on the only grid, `[out, 1]`."""
        codes = self._codes(values).flatten()[:out].to(torch.uint8)
        return Tiles(
            codes[:, None],
            self.step[0, :, None].to(self.dtype),
            self.offset[0, :, None].to(self.dtype),
            self.bits,
            self.rows,
        )


StatisticGrid = PlainStatistic | LevelStatistic
