import pytest
import torch

from roundel.errors import NonFiniteError
from roundel.methods.hessian import Hessian, HessianDiagonal, factorize


def test_mean_of_squares_over_all_tokens_of_all_batches() -> None:
    diagonal = HessianDiagonal()
    assert diagonal.mean() is None
    inputs = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    diagonal.add(inputs[:2].bfloat16().float())
    diagonal.add(inputs[2:])
    seen = torch.cat([inputs[:2].bfloat16().float(), inputs[2:]]).reshape(35, 3)
    assert torch.allclose(diagonal.mean(), (seen.T @ seen).diagonal() / 35)


@pytest.mark.parametrize("width", [3, 512, 700, 1200])
def test_second_moments_over_all_batches(width: int) -> None:
    hessian = Hessian()
    inputs = torch.randn(4, 9, width, generator=torch.Generator().manual_seed(0))
    hessian.add(inputs[:1])
    hessian.add(inputs[1:])
    seen = inputs.reshape(-1, width).double()
    found = hessian.mean()
    assert torch.equal(found, found.T)
    assert torch.allclose(found.double(), seen.T @ seen / 36, atol=1e-5)
    assert hessian.tokens == 36


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
