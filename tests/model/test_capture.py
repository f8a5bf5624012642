from collections import UserDict
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from roundel.errors import ModelError
from roundel.model.blocks import find_blocks
from roundel.model.capture import BlockRunner
from zoo import EVERY, OWN_CODE, zoo_model

pytestmark = pytest.mark.slow("runs 31 architectures block by block")


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


@torch.no_grad()
@pytest.mark.parametrize("name", EVERY)
def test_blocks_of_any_architecture_lead_to_what_its_head_sees(name: str) -> None:
    """Whatever they pass to their blocks, in batches whose last one is smaller."""
    model = AutoModelForCausalLM.from_pretrained(zoo_model(name), trust_remote_code=name in OWN_CODE).eval()
    stack, ids = find_blocks(model), tokens()
    wanted: list[torch.Tensor] = []
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, args: wanted.append(args[0]))
    model(input_ids=ids, use_cache=False)
    hook.remove()
    runner = BlockRunner(model, stack, ids)
    hidden = torch.cat(list(runner.first_inputs(batch_size=2)))
    assert hidden.shape[:2] == ids.shape
    for index in range(len(stack)):
        hidden = torch.cat([runner.run(index, part) for part in hidden.split(2)])
    rows = [runner.inputs_of(head, part) for part in hidden.split(2)]
    found = torch.cat(rows, dim=0 if rows[0].shape[0] == 2 else 1)
    assert torch.allclose(found, wanted[0], atol=1e-3 * float(wanted[0].abs().max()))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden: torch.Tensor, more: object = None) -> torch.Tensor:
        return hidden + self.linear(hidden)


class Toy(nn.Module):
    """A language model whose blocks are handed something, or hand something on."""

    def __init__(self, block: type[nn.Module] = Block) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 8), nn.Linear(8, 50)
        self.layers = nn.ModuleList(block() for _ in range(3))

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        return self.head(self.through(input_ids, self.embed(input_ids)))

    def through(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


def run_all(model: nn.Module, ids: torch.Tensor | None = None) -> torch.Tensor:
    ids = tokens() % 50 if ids is None else ids
    runner = BlockRunner(model, find_blocks(model), ids)
    hidden = next(runner.first_inputs(5))
    for index in range(3):
        hidden = runner.run(index, hidden)
    return hidden


def test_arguments_that_depend_on_the_tokens_are_refused() -> None:
    class PerToken(Toy):
        def through(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                hidden = layer(hidden, more=[self.embed(ids)])
            return hidden

    with pytest.raises(
        ModelError, match=r"layers\.0 takes more than hidden states: more, which depends on the"
    ):
        run_all(PerToken())


def test_hidden_states_of_earlier_blocks_are_refused() -> None:
    class Skipping(Toy):
        def through(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            first = hidden = self.layers[0](hidden)
            for layer in list(self.layers)[1:]:
                hidden = layer(hidden, torch.stack([first, first]))
            return hidden

    with pytest.raises(ModelError, match=r"layers\.1 takes more than hidden states: argument 1"):
        run_all(Skipping())


def test_what_a_block_hands_on_beside_hidden_states_is_refused() -> None:
    class Handing(Block):
        def forward(self, hidden: torch.Tensor, more: object = None) -> tuple[torch.Tensor, torch.Tensor]:
            return super().forward(hidden), hidden.mean()

    class Carrying(Toy):
        def through(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            more = None
            for layer in self.layers:
                hidden, more = layer(hidden, more)
            return hidden

    class Dropping(Carrying):
        def through(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                hidden, _ = layer(hidden)
            return hidden

    with pytest.raises(
        ModelError, match=r"layers\.1 takes more than hidden states: what the block before it ret"
    ):
        run_all(Carrying(Handing))
    run_all(Dropping(Handing))


def test_state_that_blocks_share_in_an_object_is_refused() -> None:
    class Leaving(Block):
        def forward(self, hidden: torch.Tensor, more: object = None) -> torch.Tensor:
            more["keys"] = hidden
            return super().forward(hidden)

    class Sharing(Toy):
        def through(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            shared = UserDict()
            for layer in self.layers:
                hidden = layer(hidden, shared)
            return hidden

    with pytest.raises(
        ModelError, match=r"layers\.0 takes more than hidden states: an object in which it leaves"
    ):
        run_all(Sharing(Leaving))


def test_blocks_may_return_lists() -> None:
    class Listing(Block):
        def forward(self, hidden: torch.Tensor, more: object = None) -> list[torch.Tensor]:
            return [super().forward(hidden), hidden]

    class Unpacking(Toy):
        def through(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                output = layer(hidden)
                assert isinstance(output, list)
                hidden = output[0]
            return hidden

    model = Unpacking(Listing)
    ids = tokens() % 50
    with torch.no_grad():
        assert torch.allclose(model.head(run_all(model, ids)), model(ids), atol=1e-5)


def test_hidden_states_of_another_form_are_refused() -> None:
    class Wide(Toy):
        def through(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            return super().through(ids, hidden[:, :, None].expand(-1, -1, 4, -1)).sum(2)

    with pytest.raises(
        ModelError, match=r"layers\.0 takes hidden states of shape \(5, 24, 4, 8\): one vector"
    ):
        run_all(Wide())


def test_blocks_that_are_never_called_are_refused() -> None:
    class Idle(Toy):
        def through(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            return hidden

    with pytest.raises(ModelError, match=r"0 calls of the 3 blocks of layers .*--blocks PATTERN"):
        run_all(Idle())
