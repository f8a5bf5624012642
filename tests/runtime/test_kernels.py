import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from roundel.compiled.extension import instruction_sets
from roundel.grid.block_types import BLOCK_TYPES
from roundel.grid.scheme import Scheme
from roundel.runtime import reference
from roundel.runtime.kernels import Handle
from roundel.runtime.modes import MODES, Mode
from roundel.runtime.packed_weight import PackedWeight
from runtime.random_weights import (
    BLOCKS,
    FORMS,
    GROUPS,
    OUTLIERS,
    SETS,
    a_weight,
    exact_product,
    needs_kernels,
    summed,
)

# Of what is summed: three digits lose half of 2^-22 of the largest activation, sums of some blocks a few times 2^-24.
EXACT = 6e-7


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def activations(tokens: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Some stand out of their token, so that fast mode has blocks of one digit and of two."""
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed))
    x[::2, 40::170] *= 30
    return x


def handle_of(scheme: Scheme, rows: int, columns: int, name: str = "", **forms: object) -> Handle:
    return Handle(PackedWeight.pack(a_weight(scheme, rows, columns, 0, **forms)), name)


def check(
    scheme: Scheme,
    rows: int,
    columns: int,
    tokens: int,
    name: str,
    outliers: str = "none",
    ordered: bool = False,
) -> None:
    """Exact mode against float64, fast mode against the reference."""
    weight = a_weight(scheme, rows, columns, tokens, outliers, ordered)
    packed = PackedWeight.pack(weight)
    handle, x = Handle(packed, name), activations(tokens, columns)
    room = summed(x, weight)
    found = handle.multiply(x, "exact")
    assert found is not None
    assert ((found.double() - exact_product(x, weight)).abs() <= EXACT * room).all()
    found = handle.multiply(x, "fast")
    assert found is not None
    assert ((found - reference.multiply(x, packed, "fast")).abs() <= 2 * EXACT * room).all()


def test_kernels_are_here_where_they_could_be_built() -> None:
    """Where a compiler fails, the installation is left without them, and nothing else says so."""
    if not (shutil.which("cmake") and (shutil.which("c++") or shutil.which(os.environ.get("CXX", "g++")))):
        pytest.skip("no cmake and C++ compiler here")
    assert instruction_sets(), (
        "this machine has cmake and a C++ compiler, but roundel was installed without its kernels: see what "
        "`pip install -v .` says"
    )
    assert instruction_sets()[-1] == "portable"


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", GROUPS)
def test_products_of_every_width(bits: int, group: int, name: str) -> None:
    """9 tokens are all numbers that are taken at once; 37 rows and 213 columns multiples of nothing."""
    for form in ("sym", "asym"):
        check(Scheme(bits=bits, group_size=group, **FORMS[form]), 37, 213, 9, name)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tile_rows", [16, 32, 8, 5])
def test_products_of_every_form(form: str, tile_rows: int, name: str) -> None:
    for bits, group in ((3, 16), (4, 128), (6, 8)):
        check(Scheme(bits=bits, group_size=group, tile_rows=tile_rows, **FORMS[form]), 53, 277, 3, name)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("type_", BLOCKS)
def test_products_of_types_of_gguf_files(type_: str, name: str) -> None:
    check(Scheme(type=type_), 37, 3 * BLOCK_TYPES[type_].block, 5, name)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("outliers", OUTLIERS)
@pytest.mark.parametrize("ordered", [False, True])
def test_products_with_outliers_and_order(outliers: str, ordered: bool, name: str) -> None:
    scheme = Scheme(bits=3, group_size=16, **FORMS["two levels, nibbles"])
    check(scheme, 37, 213, 3, name, outliers, ordered)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("tokens", range(1, 10))
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_products_of_any_number_of_tokens(bits: int, tokens: int, name: str) -> None:
    check(Scheme(bits=bits, group_size=32), 20, 100, tokens, name)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("mode", MODES)
def test_a_token_alone_gets_the_same_bits(mode: Mode, name: str) -> None:
    for bits in (4, 8):
        handle, x = handle_of(Scheme(bits=bits, group_size=64), 37, 213, name), activations(9, 213)
        alone = [handle.multiply(row[None], mode) for row in x]
        assert torch.equal(handle.multiply(x, mode), torch.cat(alone))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 213), (37, 1), (16, 32), (17, 33)])
def test_products_of_the_smallest_shapes(rows: int, columns: int, name: str) -> None:
    for bits in range(2, 9):
        check(Scheme(bits=bits, group_size=128), rows, columns, 2, name, "some")


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("mode", MODES)
def test_nothing_comes_of_no_tokens(mode: Mode, name: str) -> None:
    found = handle_of(Scheme(), 37, 213, name).multiply(torch.empty(0, 213), mode)
    assert found is not None
    assert found.shape == (0, 37)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("mode", MODES)
def test_activations_that_are_not_finite_are_refused(mode: Mode, value: float, name: str) -> None:
    handle, x = handle_of(Scheme(), 37, 213, name), activations(3, 213)
    for column in (0, 127, 212):
        bad = x.clone()
        bad[1, column] = value
        assert handle.multiply(bad, mode) is None


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-31, 1e-20, 1e20, 1e27])
def test_activations_of_any_size(size: float, name: str) -> None:
    """Sizes that change from block to block among them. Below 2^-100 activations are kept to 2^-122."""
    weight = a_weight(Scheme(bits=4, group_size=64), 37, 213, seed=0)
    handle, x = Handle(PackedWeight.pack(weight), name), activations(3, 213) * size
    x[1, ::2] = 0
    x[2, 64:128] /= size
    found = handle.multiply(x, "exact")
    assert found is not None
    room = EXACT * summed(x, weight) + 2.0**-122 * weight.dequantize().double().abs().sum(1)
    # Sums below the smallest normal number are rounded to steps of 2^-149.
    assert ((found.double() - exact_product(x, weight)).abs() <= room + 2.0**-144).all()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_activations_as_large_as_floats_are(bits: int, mode: Mode, name: str) -> None:
    """Either the product, or None: sums of integer products may not run over where sums of floats do not."""
    weight = a_weight(Scheme(bits=bits, group_size=128), 37, 4096, seed=0)
    handle, x = Handle(PackedWeight.pack(weight), name), activations(2, 4096).clamp(-1, 1) * 3e38
    found = handle.multiply(x, mode)
    assert found is None or found.isfinite().all()


@pytest.mark.parametrize("name", SETS)
def test_the_largest_sums_do_not_run_over(name: str) -> None:
    """Codes and activations at their extremes, of one sign or of alternating ones: sums are kept in 16 bits by some."""
    for bits in range(2, 9):
        weight = a_weight(Scheme(bits=bits, group_size=64), 16, 128, seed=0)
        for code in (0, weight.scheme.levels):
            weight.codes.fill_(code)
            packed = PackedWeight.pack(weight)
            x = torch.ones(4, 128)
            x[1], x[2, ::2], x[3, 1::4] = -1, -1, -1
            for mode in MODES:
                found = Handle(packed, name).multiply(x, mode)
                assert found is not None
                room = 2 * EXACT * summed(x, weight)
                assert ((found.double() - exact_product(x, weight)).abs() <= room).all()


@pytest.mark.parametrize("name", SETS)
def test_memory_in_any_order(name: str) -> None:
    handle, x = handle_of(Scheme(), 37, 213, name), activations(6, 2 * 213)
    for view in (x[:, ::2], x[::2, :213], x.T[:213, :6].T, x[:1, :213].expand(5, 213)):
        assert torch.equal(handle.multiply(view, "exact"), handle.multiply(view.contiguous(), "exact"))


@pytest.mark.parametrize("name", SETS)
def test_what_does_not_fit_is_refused(name: str) -> None:
    handle = handle_of(Scheme(), 37, 213, name)
    for wrong in (
        torch.ones(2, 212),
        torch.ones(2, 213).double(),
        torch.ones(2, 213, device="meta"),
    ):
        with pytest.raises(ValueError, match=r"213\] float32 on the CPU"):
            handle.multiply(wrong, "exact")
    for first, last in ((-1, 3), (0, 38), (5, 4)):
        with pytest.raises(IndexError, match=r"37"):
            handle.decode(first, last)
    for row in (-1, 37):
        with pytest.raises(IndexError, match=r"37"):
            handle.lookup(torch.tensor([3, row]))


@needs_kernels
def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="sse9"):
        handle_of(Scheme(), 37, 213, "sse9").multiply(torch.ones(1, 213), "exact")


@pytest.mark.parametrize("name", SETS)
def test_torchs_defaults_change_nothing(name: str) -> None:
    """Models are built with another default type or device; the kernels write float32 to the CPU."""
    handle, x = handle_of(Scheme(), 37, 213, name), activations(3, 213)
    wanted, decoded, looked_up = (
        handle.multiply(x, "exact"),
        handle.decode(0, 37),
        handle.lookup(torch.tensor([5])),
    )
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            assert torch.equal(handle.multiply(x, "exact"), wanted)
            assert torch.equal(handle.decode(0, 37), decoded)
            assert torch.equal(handle.lookup(torch.tensor([5], device="cpu")), looked_up)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("outliers", ["none", "some"])
def test_decoded_weights_are_the_dequantized_ones_bit_for_bit(outliers: str, form: str, name: str) -> None:
    for bits, group, tile_rows in ((2, 8, 16), (3, 16, 5), (5, 12, 32), (8, 100, 8), (7, -1, 16)):
        scheme = Scheme(bits=bits, group_size=group, tile_rows=tile_rows, **FORMS[form])
        weight = a_weight(scheme, 53, 213, bits, outliers, ordered=True)
        assert weight.order is not None
        wanted = weight.dequantize()[:, weight.order]
        handle = Handle(PackedWeight.pack(weight), name)
        for first, last in ((0, 53), (3, 4), (15, 33), (52, 53), (7, 7)):
            assert torch.equal(handle.decode(first, last), wanted[first:last])
        rows = torch.tensor([52, 0, 17, 17, 31])
        assert torch.equal(handle.lookup(rows), wanted[rows])
        assert handle.lookup(rows[:0]).shape == (0, 213)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("type_", BLOCKS)
def test_types_of_gguf_files_are_decoded_bit_for_bit(type_: str, name: str) -> None:
    weight = a_weight(Scheme(type=type_), 37, 2 * BLOCK_TYPES[type_].block, seed=0)
    assert torch.equal(Handle(PackedWeight.pack(weight), name).decode(0, 37), weight.dequantize())


@pytest.mark.parametrize("name", SETS)
def test_the_smallest_scales_are_decoded_bit_for_bit(name: str) -> None:
    """Subnormal numbers of 16 bits among them."""
    weight = a_weight(Scheme(group_size=8), 16, 128, seed=0)
    for dtype in ("float16", "bfloat16"):
        scheme = Scheme(group_size=8, scale_dtype=dtype)
        scale = (weight.scale.float() * 10.0 ** -torch.arange(16)).to(scheme.torch_dtype)
        small = type(weight)(weight.codes, scale, weight.zero, scheme)
        assert torch.equal(Handle(PackedWeight.pack(small), name).decode(0, 16), small.dequantize())


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("mode", MODES)
def test_several_threads_are_one_bit_for_bit(mode: Mode, name: str, threads: None) -> None:
    handle = handle_of(Scheme(bits=3, group_size=32), 1003, 700, name, outliers="some")
    x, rows = activations(5, 700), torch.arange(0, 1003, 7)
    torch.set_num_threads(1)
    wanted = handle.multiply(x, mode), handle.decode(0, 1003), handle.lookup(rows)
    for count in (2, 3, 8, 2):
        torch.set_num_threads(count)
        for _ in range(5):
            found = handle.multiply(x, mode), handle.decode(0, 1003), handle.lookup(rows)
            assert all(map(torch.equal, found, wanted))


@needs_kernels
def test_calls_from_several_threads_at_once(threads: None) -> None:
    torch.set_num_threads(2)
    handle = handle_of(Scheme(), 600, 700)
    inputs = [activations(n % 4 + 1, 700, seed=n) for n in range(8)]
    wanted = [handle.multiply(x, "exact") for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: handle.multiply(x, "exact"), inputs * 20))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted * 20, strict=True))


@needs_kernels
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_computes(threads: None) -> None:
    """It has none of the threads that its parent's pool has."""
    torch.set_num_threads(3)
    handle, x = handle_of(Scheme(), 600, 700), activations(2, 700)
    wanted = handle.multiply(x, "exact")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            same = all(torch.equal(handle.multiply(x, "exact"), wanted) for _ in range(20))
            status = 0 if same else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(handle.multiply(x, "exact"), wanted)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_products_of_integers(bits: int, name: str) -> None:
    """Of all 256 values, with and without zero points, against float64."""
    weight = a_weight(Scheme(bits=bits, group_size=48, scale_dtype="bfloat16"), 37, 213, bits, "some", True)
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(-128, 128, (5, 213), generator=generator, dtype=torch.int8)
    codes[1], codes[2] = -128, 127
    scales, zeros = torch.rand(5, generator=generator), torch.tensor([0.0, 3.0, -128.0, 127.0, -5.0])
    decoded = weight.dequantize().double()
    found = Handle(PackedWeight.pack(weight), name).multiply_integers(
        codes, scales, zeros, decoded.sum(1).float()
    )
    wanted = (codes.double() - zeros[:, None].double()) * scales[:, None].double() @ decoded.T
    # Integers are exact as they come: what is rounded are sums of floats.
    room = EXACT * (summed(codes.float(), weight) + zeros.abs()[:, None] * decoded.abs().sum(1))
    assert ((found.double() - wanted).abs() <= room * scales[:, None]).all()
