import pytest
import torch

from roundel.errors import NonFiniteError
from roundel.methods.cholesky import factorize


def test_the_factor_is_upper_triangular_and_holds_the_papers_numbers() -> None:
    inputs = torch.randn(50, 12, generator=torch.Generator().manual_seed(1))
    hessian = inputs.T @ inputs / 50
    factor = factorize(hessian, 0.1)
    damped = hessian + 0.1 * hessian.diagonal().mean() * torch.eye(12)
    assert torch.equal(factor.root, factor.root.triu())
    assert torch.allclose(factor.root @ factor.root.T, damped, atol=1e-5)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped.double()), upper=True)
    assert torch.allclose(factor.importance.double(), upper.diagonal() ** -2, rtol=1e-4)
    assert factor.damping == 0.1


def test_damping_rises_until_the_factorization_succeeds() -> None:
    matrix = torch.eye(4)
    matrix[0, 1] = matrix[1, 0] = 1.05  # indefinite: an eigenvalue of -0.05
    assert factorize(matrix, 0.01).damping == pytest.approx(0.1)
    assert factorize(matrix, 0.0).damping == pytest.approx(0.1)
    assert factorize(torch.zeros(3, 3), 0.01).damping == 0.01


def test_no_damping_helps() -> None:
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        factorize(torch.full((2, 2), float("nan")), 0.01)
    with pytest.raises(NonFiniteError, match="cannot be factorized"):
        factorize(torch.tensor([[1.0, 1e4], [1e4, 1.0]]), 0.01)
