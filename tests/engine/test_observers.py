from pathlib import Path

import torch

from roundel.engine.observers import InputHessians, InputStatistics, sharing_inputs
from roundel.model.blocks import find_blocks
from roundel.model.linears import LinearView


def names(groups: list[list[LinearView]]) -> list[list[str]]:
    return [[view.name.rpartition(".")[2] for view in group] for group in groups]


def test_linears_that_read_the_same_tensor_are_found(any_model: Path, load_model) -> None:
    model, _ = load_model(any_model)
    linears = find_blocks(model).linears(0)
    found = names(sharing_inputs(lambda: model(torch.arange(20)[None], use_cache=False), linears))
    wanted = {
        "llama": [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]],
        "opt": [["q_proj", "k_proj", "v_proj"], ["out_proj"], ["fc1"], ["fc2"]],
        "bloom": [["query_key_value"], ["dense"], ["dense_h_to_4h"], ["dense_4h_to_h"]],
        "gpt2": [["c_attn"], ["c_proj"], ["c_fc"], ["c_proj"]],
    }
    assert [sorted(group) for group in found] == [sorted(group) for group in wanted[any_model.name]]


def test_a_linear_that_is_not_called_stands_alone() -> None:
    used, unused = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    views = [LinearView("unused", unused), LinearView("used", used)]
    assert names(sharing_inputs(lambda: used(torch.ones(1, 3)), views)) == [["used"], ["unused"]]


def test_an_input_that_is_changed_in_place_is_another_input() -> None:
    first, second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)

    def run() -> None:
        inputs = torch.ones(2, 3)
        first(inputs)
        second(inputs.mul_(2))

    views = [LinearView("first", first), LinearView("second", second)]
    assert names(sharing_inputs(run, views)) == [["first"], ["second"]]


def test_moments_are_collected_once_per_input() -> None:
    one, two = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    views = [LinearView("one", one), LinearView("two", two)]
    inputs = torch.randn(5, 3)
    with InputHessians([views]) as hessians, InputStatistics(views[1:]) as statistics:
        for module in (one, two):
            module(inputs)
    assert hessians.hessians[0].tokens == 5
    assert torch.allclose(hessians.hessians[0].mean(), inputs.T @ inputs / 5)
    assert torch.allclose(statistics.mean_of("two"), inputs.square().mean(0))
    assert statistics.mean_of("one") is None
    one(inputs)  # after the watch nobody listens
    assert hessians.hessians[0].tokens == 5
