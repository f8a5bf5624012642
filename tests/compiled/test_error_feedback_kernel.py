"""The kernel of rounding with error feedback finds the bits that torch's operators find, by every instruction set."""

import pytest
import torch

from roundel.compiled import columns as kernel
from roundel.compiled.columns import Columns
from roundel.compiled.extension import instruction_sets
from roundel.grid.scheme import Scheme
from roundel.methods import columns as by_operators

SETS = [pytest.param(name, id=name) for name in instruction_sets() or ["none"]]
pytestmark = pytest.mark.skipif(not instruction_sets(), reason="this installation has no kernels")

KINDS = {
    "integers": Scheme(bits=3, group_size=64),
    "symmetric": Scheme(bits=2, group_size=32, sym=True),
    "real": Scheme(bits=4, group_size=16, round_zero=False),
    "minima": Scheme(type="q4_1"),
    "byte": Scheme(bits=8, group_size=32),
}
GROUPS = 3


def random_columns(scheme: Scheme, out: int, width: int, *, outliers: bool) -> Columns:
    generator = torch.Generator().manual_seed(out + width)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    original = normal(width, out) * torch.exp(normal(width, out))
    zero = torch.randint(0, int(scheme.levels) + 1, (GROUPS, out), generator=generator).float()
    return Columns(
        original=original,
        update=(0.1 * normal(width, width)).tril(-1) + torch.eye(width),
        scale=(0.1 + torch.rand(GROUPS, out, generator=generator)) * 8 / scheme.levels,
        zero=zero if scheme.round_zero else normal(GROUPS, out),
        group_of=torch.randint(0, GROUPS, (width,), generator=generator),
        mask=normal(width, out) > 2 if outliers else None,
        present=original + 0.1 * normal(width, out),
        error=normal(width, out),
        codes=torch.full((width, out), 7, dtype=torch.uint8),
        residual=torch.zeros(width, out, dtype=torch.float16) if outliers else None,
    )


@pytest.mark.parametrize("outliers", [False, True], ids=["all codes", "outliers"])
@pytest.mark.parametrize("out", [1, 16, 77, 300])
@pytest.mark.parametrize("scheme", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("instructions", SETS)
def test_the_same_bits(
    instructions: str, scheme: Scheme, out: int, outliers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, last, width = 5, 5 + kernel.MOST_COLUMNS, 80
    found = random_columns(scheme, out, width, outliers=outliers)
    wanted = random_columns(scheme, out, width, outliers=outliers)
    kernel.round_columns(found, scheme, first, last, instructions)
    monkeypatch.setattr(kernel, "serve", lambda columns: False)
    by_operators.round_columns(wanted, scheme, first, last)
    done = slice(first, last)
    for name in ("present", "error", "codes", "residual"):
        ours, theirs = getattr(found, name), getattr(wanted, name)
        if ours is None:
            assert theirs is None
            continue
        assert torch.equal(ours[done], theirs[done]), name
        # What is to come is told by matrix products.
        before = getattr(random_columns(scheme, out, width, outliers=outliers), name)
        assert torch.equal(ours[:first], before[:first]), name
        assert torch.equal(ours[last:], before[last:]), name
    if outliers:
        assert bool(found.residual[done].any())


def test_residuals_are_the_nearest_of_their_type() -> None:
    """Halves to even, below the smallest normal number and beyond the largest as well."""
    exact = torch.tensor(
        [65519.0, 65520.0, 1e9, 2**-14, 2**-24, 2**-25, 2**-25 * 1.001, 3 * 2**-25, 1.00048828125]
    )
    exact = torch.cat([exact, -exact, torch.randn(200) * torch.exp(6 * torch.randn(200))])
    columns = random_columns(KINDS["integers"], len(exact), 1, outliers=True)
    columns.scale.fill_(1.0)
    columns.zero.zero_()
    columns.present.copy_(exact.clamp(max=0.25)[None])  # rounded to code 0, so that all of it remains
    columns.mask.fill_(True)
    kernel.round_columns(columns, KINDS["integers"], 0, 1)
    assert not columns.codes.any()
    assert torch.equal(columns.residual, columns.present.half())


def test_what_kernels_cannot_read_is_refused() -> None:
    columns = random_columns(KINDS["integers"], 8, 4, outliers=False)
    parts = {name: getattr(columns, name) for name in Columns.__dataclass_fields__}
    for name, wrong in (
        ("scale", columns.scale.double()),
        ("update", columns.update[:3]),
        ("present", torch.empty(8, 4).t()),
        ("mask", torch.zeros(4, 8)),
    ):
        with pytest.raises(ValueError, match="is expected"):
            Columns(**parts | {name: wrong})
    with pytest.raises(ValueError, match="beyond their scales"):
        Columns(**parts | {"group_of": torch.tensor([0, 1, 2, 3])})
    with pytest.raises(ValueError, match="columns 2 to 5 of 4"):
        kernel.round_columns(columns, KINDS["integers"], 2, 5)
    many = random_columns(KINDS["integers"], 8, kernel.MOST_COLUMNS + 1, outliers=False)
    with pytest.raises(ValueError, match="too many columns"):
        kernel.round_columns(many, KINDS["integers"], 0, kernel.MOST_COLUMNS + 1)
