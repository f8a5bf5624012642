import pytest
import torch

from roundel.activations.rounding import grid_of_range, quantize_vectors
from roundel.activations.scheme import ActivationScheme
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.runtime.modes import MODES, Mode
from roundel.runtime.packed_weight import PackedWeight
from roundel.runtime.product import Product
from runtime.random_weights import FORMS, a_weight, exact_product, needs_kernels, summed

# Of what is summed, as in test_kernels.py; sums of floats in one go are a little less exact.
EXACT = 2e-6


@pytest.fixture(params=[pytest.param("kernels", marks=needs_kernels), "torch"])
def means(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What computes: everything here is so with kernels and without."""
    if request.param == "torch":
        monkeypatch.setattr("roundel.runtime.kernels.EXTENSION", None)
    return request.param


def some_weight(rows: int = 37, columns: int = 213, ordered: bool = True) -> QuantizedWeight:
    return a_weight(
        Scheme(bits=3, group_size=16, **FORMS["two levels, nibbles"]), rows, columns, 0, "some", ordered
    )


def product_of(weight: QuantizedWeight) -> Product:
    return Product(PackedWeight.pack(weight))


def activations(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def near(found: torch.Tensor, x: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    return (found.double() - exact_product(x, weight)).abs() <= EXACT * summed(x, weight)


@pytest.mark.parametrize("tokens", [1, 2, 16, 17, 40])
@pytest.mark.parametrize("ordered", [False, True])
def test_exact_products(tokens: int, ordered: bool, means: str) -> None:
    """Few tokens and many go different ways."""
    weight, x = some_weight(ordered=ordered), activations(tokens, 213)
    assert near(product_of(weight).multiply(x, "exact"), x, weight).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tokens", [1, 40])
def test_gradients_of_activations_are_those_of_the_decoded_weight(
    tokens: int, mode: Mode, means: str
) -> None:
    weight, x = some_weight(), activations(tokens, 213).requires_grad_()
    (wanted,) = torch.autograd.grad((x @ weight.dequantize().t()).square().sum(), x)
    (found,) = torch.autograd.grad(product_of(weight).multiply(x, mode).square().sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("bits", [2, 4, 5, 8])
@pytest.mark.parametrize("tokens", [1, 16, 40])
def test_fast_products_miss_what_their_digits_do(tokens: int, bits: int, means: str) -> None:
    """Half a step for every activation; a step is the largest of those that share one over 127 or 127 254 + 126."""
    weight, x = a_weight(Scheme(bits=bits, group_size=32), 37, 213, 0, "some"), activations(tokens, 213)
    found = product_of(weight).multiply(x, "fast").double()
    most = 127 if bits <= 4 else 127 * 254 + 126
    room = summed(x, weight) * (0.5 / most + EXACT)
    assert ((found - exact_product(x, weight)).abs() <= room).all()
    if bits <= 4:
        assert not near(found, x, weight).all()


def test_outliers_of_activations_cost_fast_products_little(means: str) -> None:
    """One digit for all would lose about half a step of the outlier's in each of its neighbours."""
    weight, x = a_weight(Scheme(bits=4, group_size=32), 37, 640, 0), activations(20, 640)
    plain = product_of(weight).multiply(x, "fast") - exact_product(x, weight)
    x[:, 100] = 300
    found = product_of(weight).multiply(x, "fast") - exact_product(x, weight)
    assert found.norm() < 1.2 * plain.norm()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (1, 5, 2), (0,), (2, 0, 3)])
def test_any_shape(shape: tuple[int, ...], mode: Mode, means: str) -> None:
    product, x = product_of(some_weight()), activations(*shape, 213)
    found = product.multiply(x, mode)
    assert found.shape == (*shape, 37)
    flat = product.multiply(x.reshape(-1, 213), mode)
    assert torch.equal(found, flat.view(*shape, 37))


@pytest.mark.parametrize("mode", MODES)
def test_memory_in_any_order(mode: Mode, means: str) -> None:
    product, x = product_of(some_weight()), activations(6, 2 * 213)
    for view in (
        x[:, ::2],
        x[::2, :213],
        x.T[:213, :6].T,
        x[:1, :213].expand(5, 213),
        x[:4].view(2, 4, 213).mT.mT,
    ):
        found, wanted = product.multiply(view, mode), product.multiply(view.contiguous(), mode)
        if means == "kernels":
            assert torch.equal(found, wanted)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)  # torch sums in another order


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types_of_activations(dtype: torch.dtype, mode: Mode, means: str) -> None:
    """Computed in float32 and rounded once."""
    product, x = product_of(some_weight()), activations(3, 213).to(dtype)
    found = product.multiply(x, mode)
    assert found.dtype is dtype
    assert torch.equal(found, product.multiply(x.float(), mode).to(dtype))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("tokens", [3, 20])
def test_one_token_that_is_not_finite(tokens: int, value: float, mode: Mode, means: str) -> None:
    """Its result is that of floats, and nobody else's changes by more than rounding."""
    weight, x = some_weight(), activations(tokens, 213)
    x[1, 7] = value
    found = product_of(weight).multiply(x, mode)
    wanted = x[1] @ weight.dequantize().T
    assert not found[1].isfinite().any()
    assert torch.equal(found[1].nan_to_num(), wanted.nan_to_num())
    others = [token for token in range(tokens) if token != 1]
    if mode == "exact":
        assert near(found[others], x[others], weight).all()
    else:
        room = summed(x[others], weight) / 2**7
        assert ((found[others].double() - exact_product(x[others], weight)).abs() <= room).all()


@pytest.mark.parametrize("size", [0.0, 1e-42, 1e-33, 1e34])
def test_activations_of_any_size(size: float, means: str) -> None:
    weight, x = a_weight(Scheme(bits=3, group_size=32), 37, 213, 0), activations(3, 213) * size
    room = EXACT * summed(x, weight) + 2.0**-122 * weight.dequantize().double().abs().sum(1)
    for tokens in (x, x[:1].expand(20, 213)):
        found = product_of(weight).multiply(tokens, "exact").double()
        assert (
            (found - exact_product(tokens, weight)).abs() <= room[: len(tokens)].amax(0) + 2.0**-144
        ).all()


@pytest.mark.parametrize("mode", MODES)
def test_activations_of_another_width_are_refused(mode: Mode, means: str) -> None:
    for columns in (212, 214, 1):
        with pytest.raises((ValueError, RuntimeError)):
            product_of(some_weight()).multiply(activations(2, columns), mode)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("ordered", [False, True])
def test_rows_looked_up(shape: tuple[int, ...], ordered: bool, means: str) -> None:
    weight = some_weight(ordered=ordered)
    rows = torch.randint(0, 37, shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(product_of(weight).lookup(rows), weight.dequantize()[rows])


@pytest.mark.parametrize("row", [-38, 37])
def test_rows_that_are_not_there(row: int, means: str) -> None:
    with pytest.raises(IndexError):
        product_of(some_weight()).lookup(torch.tensor([0, row]))


@pytest.mark.parametrize("activation_bits", [2, 4, 8])
@pytest.mark.parametrize("sym", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_integer_activations_are_the_simulation(
    bits: int, sym: bool, activation_bits: int, means: str
) -> None:
    """W4A8 and its kin: rounded activations times decoded weights, up to the rounding of sums."""
    weight = a_weight(Scheme(bits=bits, group_size=32), 37, 213, 0, "some", ordered=True)
    grid = ActivationScheme(bits=activation_bits, sym=sym, static=False)
    x = activations(9, 213) + 0.5
    x[3] = 0
    low, high = x.aminmax(dim=-1, keepdim=True)
    scale, zero = grid_of_range(low.clamp(max=0), high.clamp(min=0), grid)
    codes = (x / scale).add(zero).round().clamp(-grid.midpoint, grid.midpoint - 1)
    found = product_of(weight).multiply_integers(codes.to(torch.int8), scale[:, 0], zero[:, 0])
    wanted = exact_product(quantize_vectors(x, grid), weight)
    size = summed(codes, weight) + zero.abs() * weight.dequantize().double().abs().sum(1)
    assert ((found.double() - wanted).abs() <= EXACT * size * scale).all()


def test_no_integer_activations(means: str) -> None:
    found = product_of(some_weight()).multiply_integers(
        torch.empty(0, 213, dtype=torch.int8), torch.empty(0), torch.empty(0)
    )
    assert found.shape == (0, 37)


def test_large_weights_are_decoded_piece_by_piece(monkeypatch: pytest.MonkeyPatch, means: str) -> None:
    weight, x = some_weight(), activations(20, 213)
    monkeypatch.setattr("roundel.runtime.product._DECODED", 1)
    product = product_of(weight)
    assert near(product.multiply(x, "exact"), x, weight).all()
    codes = torch.ones(1, 213, dtype=torch.int8)
    found = product.multiply_integers(codes, torch.ones(1), torch.full((1,), 2.0))
    assert near(found, -torch.ones(1, 213), weight).all()
