from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from roundel.grid.block_types import BLOCK_TYPES
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.runtime.layout import Layout, describe, layout_of
from roundel.runtime.packed_weight import PackedWeight
from roundel.runtime.packing import pack_codes
from runtime.random_weights import BLOCKS, FORMS, GROUPS, OUTLIERS, TILE_ROWS, a_weight, needs_kernels


def settings_of(form: str) -> Iterator[dict[str, object]]:
    if "two levels" not in form:
        yield FORMS[form]
        return
    for rows in TILE_ROWS:
        yield {**FORMS[form], "tile_rows": rows}


def check(weight: QuantizedWeight) -> None:
    packed = PackedWeight.pack(weight)
    assert packed.unpack().equals(weight)
    assert torch.equal(packed.unpack().dequantize(), weight.dequantize())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_unpack_undoes_pack(bits: int, group: int, form: str) -> None:
    """37 rows and 213 columns are multiples of nothing."""
    for settings in settings_of(form):
        check(a_weight(Scheme(bits=bits, group_size=group, **settings), 37, 213, seed=bits))


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("rows", [1, 16, 37])
def test_unpack_undoes_pack_of_types_of_gguf_files(name: str, rows: int) -> None:
    block = BLOCK_TYPES[name].block
    for columns in (block, 3 * block):
        check(a_weight(Scheme(type=name), rows, columns, seed=rows))


@pytest.mark.parametrize("outliers", OUTLIERS)
@pytest.mark.parametrize("ordered", [False, True])
def test_unpack_undoes_pack_of_outliers_and_order(outliers: str, ordered: bool) -> None:
    scheme = Scheme(bits=3, group_size=16, **FORMS["two levels, nibbles"])
    for rows, columns in ((1, 1), (37, 213)):
        check(a_weight(scheme, rows, columns, 0, outliers, ordered))


def test_columns_of_outliers_beyond_16_bits() -> None:
    weight = a_weight(Scheme(bits=2, group_size=-1), 2, 2**16 + 5, 0, "some", ordered=True)
    assert PackedWeight.pack(weight).parts["outliers.columns"].dtype is torch.int32
    check(weight)


@given(
    st.integers(2, 8),
    st.integers(1, 40),
    st.integers(1, 140),
    st.one_of(st.just(-1), st.integers(1, 150)),
    st.sampled_from(list(FORMS)),
    st.integers(1, 40),
    st.sampled_from(OUTLIERS),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_unpack_undoes_pack_of_any_shape(
    bits: int,
    rows: int,
    columns: int,
    group: int,
    form: str,
    tile: int,
    outliers: str,
    ordered: bool,
    seed: int,
) -> None:
    scheme = Scheme(bits=bits, group_size=group, tile_rows=tile, **FORMS[form])
    check(a_weight(scheme, rows, columns, seed, outliers, ordered))


@pytest.mark.parametrize("at_once", [1, 2**13])
def test_large_weights_are_packed_piece_by_piece(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = a_weight(Scheme(bits=5, group_size=12), 100, 70, seed=0)
    whole = PackedWeight.pack(weight)
    monkeypatch.setattr("roundel.runtime.packed_weight._AT_ONCE", at_once)
    monkeypatch.setattr("roundel.runtime.packing._AT_ONCE", at_once)
    monkeypatch.setattr("roundel.runtime.packing.EXTENSION", None)
    pieces = PackedWeight.pack(weight)
    assert all(torch.equal(whole.parts[name], part) for name, part in pieces.parts.items())
    check(weight)


@needs_kernels
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("rows", [1, 16, 37])
def test_the_extension_packs_as_torch_does(bits: int, group: int, rows: int) -> None:
    layout = Layout(rows, 213, Scheme(bits=bits, group_size=group))
    codes = torch.randint(
        0, 2**bits, (rows, 213), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(pack_codes(layout, codes), layout.pack_codes(codes))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", GROUPS)
def test_where_a_code_lies(bits: int, group: int) -> None:
    """As src/kernels/matrix.h says it, one code at a time."""
    planes = {2: [2], 3: [3], 4: [4], 5: [4, 1], 6: [4, 2], 7: [4, 3], 8: [4, 4]}[bits]
    rows, columns = 21, 75
    scheme = Scheme(bits=bits, group_size=group)
    weight = a_weight(scheme, rows, columns, seed=group + 1)
    packed = PackedWeight.pack(weight).parts["codes"]
    width = scheme.width(columns)
    block = 32 if width > 16 else 16 if width > 8 else 8
    for row in range(0, rows, 3):
        for column in range(columns):
            place = column // width * -(-width // block) * block + column % width
            vectors = packed[row // 16, place // 32].view(bits, 16, 4)
            unit, code, above, first = place % 32 // 4, 0, 0, 0
            for plane in planes:
                fields = 8 // plane
                here = [int(vectors[first + i, row % 16, place % 4]) for i in range(plane)]
                if plane == 3:  # units 6 and 7 are in the two bits that pairs of three leave
                    here.append(here[0] >> 6 | here[1] >> 6 << 2 | here[2] >> 6 << 4)
                code |= (here[unit // fields] >> (plane * (unit % fields)) & (2**plane - 1)) << above
                above, first = above + plane, first + plane
            assert code == weight.codes[row, column]


def test_nothing_but_padding_is_added() -> None:
    """Whole tiles of whole chunks take what their numbers take, and a byte holds scale and zero point of SpQR."""
    scheme = Scheme(bits=3, group_size=16, **FORMS["two levels, nibbles"])
    weight = a_weight(scheme, 64, 256, seed=0)
    assert 8 * PackedWeight.pack(weight).nbytes == 64 * 256 * (3 + 8 / 16 + 4 * 16 / 256)


@pytest.mark.parametrize(
    "scheme", [Scheme(), Scheme(type="q4_k"), Scheme(bits=3, **FORMS["two levels, bytes"])]
)
def test_layouts_as_text(scheme: Scheme) -> None:
    layout = Layout(5, 512, scheme)
    assert layout_of(describe(layout)) == layout
