import pytest
import torch

from roundel.methods.optimizer import make_optimizer, make_schedule


def travel(schedule: str, iters: int, lr: float) -> float:
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = make_optimizer("signsgd", [{"params": [p], "lr": lr}])
    falling = make_schedule(optimizer, schedule, iters)
    for _ in range(iters):
        p.grad = torch.tensor([1e-12, -3.0, 0.0])
        optimizer.step()
        falling.step()
    moved = p.detach()
    assert moved[0] == -moved[1]  # the size of a gradient does not matter
    assert moved[2] == 0  # no gradient, no step
    return -float(moved[0])


def test_linear_decay_travels_half_a_code_in_total() -> None:
    assert travel("linear", 200, 1 / 200) == pytest.approx(0.5 * (1 + 1 / 200), rel=1e-4)


def test_other_schedules() -> None:
    assert travel("constant", 50, 0.02) == pytest.approx(1.0, rel=1e-4)
    assert travel("cosine", 400, 1 / 400) == pytest.approx(0.5, rel=1e-2)


def test_adamw_decays_no_weights() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer("adamw", [{"params": [p], "lr": 0.1}])
    p.grad = torch.zeros(2)
    optimizer.step()
    assert torch.equal(p.detach(), torch.ones(2))
