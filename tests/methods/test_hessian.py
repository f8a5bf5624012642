import torch

from roundel.methods.hessian import HessianDiagonal


def test_mean_of_squares_over_all_tokens_of_all_batches() -> None:
    diagonal = HessianDiagonal()
    assert diagonal.mean() is None
    inputs = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    diagonal.add(inputs[:2].bfloat16().float())
    diagonal.add(inputs[2:])
    seen = torch.cat([inputs[:2].bfloat16().float(), inputs[2:]]).reshape(35, 3)
    assert torch.allclose(diagonal.mean(), (seen.T @ seen).diagonal() / 35)
