import pytest
import torch

from roundel.engine.moments import Hessian, HessianDiagonal, squares


def test_mean_of_squares_over_all_tokens_of_all_batches() -> None:
    diagonal = HessianDiagonal()
    assert diagonal.mean() is None
    inputs = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    diagonal.add(squares(inputs[:2].bfloat16().float()), inputs[:2].shape[:-1].numel())
    diagonal.add(squares(inputs[2:]), inputs[2:].shape[:-1].numel())
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
