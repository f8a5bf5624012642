import pytest
import torch

from roundel.errors import NonFiniteError
from roundel.methods.cholesky import factorize


def test_the_factor_is_upper_triangular_and_holds_the_papers_numbers() -> None:
    inputs = torch.randn(50, 12, generator=torch.Generator().manual_seed(1))
    hessian = inputs.T @ inputs / 50
    factor = factorize(hessian, torch.arange(12), 0.1)
    damped = hessian + 0.1 * hessian.diagonal().mean() * torch.eye(12)
    root = factor.update.T * factor.importance.sqrt()
    assert torch.equal(factor.update, factor.update.tril())
    assert torch.equal(factor.update.diagonal(), torch.ones(12))
    assert torch.allclose(root @ root.T, damped, atol=1e-5)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped.double()), upper=True)
    assert torch.allclose(factor.importance.double(), upper.diagonal() ** -2, rtol=1e-4)
    assert factor.damping == 0.1


def test_rows_and_columns_are_in_the_order_that_is_asked_for() -> None:
    inputs = torch.randn(40, 9, generator=torch.Generator().manual_seed(2))
    hessian, order = inputs.T @ inputs, torch.tensor([3, 0, 8, 1, 2, 7, 4, 6, 5])
    found = factorize(hessian, order, 0.01)
    permuted = factorize(hessian[order][:, order].contiguous(), torch.arange(9), 0.01)
    assert torch.equal(found.update, permuted.update)
    assert torch.equal(found.importance, permuted.importance)


def test_damping_rises_until_the_factorization_succeeds() -> None:
    matrix = torch.eye(4)
    matrix[0, 1] = matrix[1, 0] = 1.05  # indefinite: an eigenvalue of -0.05
    assert factorize(matrix, torch.arange(4), 0.01).damping == pytest.approx(0.1)
    assert factorize(matrix, torch.arange(4), 0.0).damping == pytest.approx(0.1)
    assert factorize(torch.zeros(3, 3), torch.arange(3), 0.01).damping == 0.01


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [(0, 0), (0, 4), (2, 2), (3, 1), (4, 4)])
def test_nothing_that_is_not_finite_is_factorized(place: tuple[int, int], value: float) -> None:
    hessian = torch.eye(5)
    hessian[place] = hessian[place[::-1]] = value
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        factorize(hessian, torch.arange(5), 0.01)


def test_no_damping_helps() -> None:
    with pytest.raises(NonFiniteError, match="cannot be factorized"):
        factorize(torch.tensor([[1.0, 1e4], [1e4, 1.0]]), torch.arange(2), 0.01)
