from pathlib import Path

import pytest
import torch
from torch import nn

from roundel.errors import ModelError
from roundel.model.blocks import find_blocks
from roundel.model.capture import BlockRunner


def tokens(rows: int = 5) -> torch.Tensor:
    return torch.randint(1, 1000, (rows, 24), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_blocks_run_one_by_one_give_the_models_own_hidden_states(any_model: Path, load_model) -> None:
    model, _ = load_model(any_model)
    stack = find_blocks(model)
    runner = BlockRunner(model, stack, tokens())
    wanted = model(input_ids=tokens(), output_hidden_states=True).hidden_states
    hidden = torch.cat(list(runner.first_inputs(batch_size=2)))
    assert torch.allclose(hidden, wanted[0], atol=1e-5)
    for index in range(len(stack)):
        # Five rows in batches of two: the last batch is smaller, and ALiBi carries the batch size.
        hidden = torch.cat([runner.run(index, part) for part in hidden.split(2)])
        if index + 1 < len(stack):
            assert torch.allclose(hidden, wanted[index + 1], atol=1e-4)
    head = model.get_output_embeddings()
    behind = torch.cat([runner.inputs_of(head, part) for part in hidden.split(2)])
    assert torch.allclose(head(behind), model(input_ids=tokens()).logits, atol=1e-3)
    # The model is as it was.
    assert torch.allclose(model(input_ids=tokens()).logits, head(behind), atol=1e-3)


@torch.no_grad()
def test_arguments_follow_the_type_of_the_hidden_states(any_model: Path, load_model) -> None:
    model, _ = load_model(any_model)
    stack = find_blocks(model)
    runner = BlockRunner(model, stack, tokens())
    hidden = next(runner.first_inputs(5))
    single = runner.run(0, hidden)
    stack.blocks[0].double()
    double = runner.run(0, hidden.double())
    assert double.dtype == torch.float64
    assert torch.allclose(double.float(), single, atol=1e-3)


def test_blocks_that_are_no_chain_are_refused(llama: Path, load_model) -> None:
    model, _ = load_model(llama)

    stack = find_blocks(model)
    runner = BlockRunner(model, stack, tokens())
    blocks = list(stack.blocks)
    model.model.forward = lambda input_ids, **kwargs: blocks[1](
        blocks[0](model.model.embed_tokens(input_ids), position_embeddings=rotary(model, input_ids)) * 2,
        position_embeddings=rotary(model, input_ids),
    )
    with pytest.raises(ModelError, match=r"model\.layers\.1 is not fed with the output"):
        runner.run(0, next(runner.first_inputs(5)))


def rotary(model: nn.Module, ids: torch.Tensor):
    embedded = model.model.embed_tokens(ids)
    return model.model.rotary_emb(embedded, torch.arange(ids.shape[1])[None])


def test_a_prepared_size_runs_no_other_block_later(llama: Path, load_model) -> None:
    """Whoever counts the inputs of a block must not count the pass that records the arguments."""
    model, _ = load_model(llama)
    stack = find_blocks(model)
    runner = BlockRunner(model, stack, torch.arange(40).view(4, 10))
    runner.prepare(2)
    calls = []
    for block in stack.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    runner.run(0, torch.zeros(2, 10, 96))
    assert len(calls) == 1
