"""What rounds an output head best: a search, error feedback, or gradients of the logits' KL from either.

    python benchmarks/head.py MODEL --calibration c4.part.jsonl --text wiki.test.raw --type q4_1 [--bos]

The blocks stay as they are, so what is measured is the head alone (and, where it is tied to the embedding, what looking
up the same weight costs): KL on 12 windows of 512. Gradients: 40 steps of 512 tokens, the sign of the gradient or Adam,
offsets and ranges, the step falling to 0; their KL on the tokens that are tuned on stands beside it, first and last
sixth.
"""

from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import roundel
from roundel.calibration.sources import parse_sources
from roundel.calibration.texts import read_documents
from roundel.engine.moments import Hessian
from roundel.grid.affine import QParams
from roundel.grid.scheme import Scheme
from roundel.methods.gptq import gptq
from roundel.methods.optimizer import make_optimizer, make_schedule
from roundel.methods.options import HessianOptions
from roundel.methods.rtn import make_start
from roundel.methods.signround import RoundingOffsets
from roundel.model.text_path import text_model

STEPS, TOKENS = 40, 512
WAYS = (("signsgd", 0.003), ("signsgd", 0.025), ("adamw", 0.003))


class Bench:
    """A model's head and what reaches it.

    Args:
        model: in float32.
        calibration: `[N, S]` token ids.
        text: `[N, S]`, to measure on.
    """

    def __init__(self, model: Any, calibration: torch.Tensor, text: torch.Tensor) -> None:
        self.model, self.reader = model, text_model(model)
        self.weight = self.reader.get_output_embeddings().weight.detach().clone()
        self.text_rows = text
        self.inputs, self.text = self.hidden(calibration), self.hidden(text)

    @torch.no_grad()
    def hidden(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """What enters the head, `[S, H]` for each row."""
        taken: list[torch.Tensor] = []
        head: nn.Module = self.reader.get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda module, args: taken.append(args[0][0].detach()))
        for row in rows:
            self.model(row[None])
        handle.remove()
        return taken

    @torch.no_grad()
    def costs(self, weight: torch.Tensor) -> str:
        """KL of the head alone, of lookups alone, and of both."""
        embedding = self.reader.get_input_embeddings().weight
        alone = self.divergence(self.text, weight)
        if embedding is not self.reader.get_output_embeddings().weight:
            return f"{alone:.5f} | | "
        embedding.data = weight
        looked_up = self.hidden(self.text_rows)
        embedding.data = self.weight.clone()
        return f"{alone:.5f} | {self.divergence(looked_up, self.weight):.5f} | {self.divergence(looked_up, weight):.5f}"

    def divergence(self, inputs: list[torch.Tensor], weight: torch.Tensor) -> float:
        """KL in nats per token to the original on the text."""
        pairs = zip(self.text, inputs, strict=True)
        return sum(float(self.loss(wanted, found, weight)) for wanted, found in pairs) / len(inputs)

    def loss(self, wanted: torch.Tensor, found: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """KL of some tokens."""
        p = (wanted @ self.weight.t()).log_softmax(-1)
        return (p.exp() * (p - (found @ weight.t()).log_softmax(-1))).sum(-1).mean()

    def tuned(
        self, base: torch.Tensor, start: QParams, scheme: Scheme, way: tuple[str, float]
    ) -> tuple[torch.Tensor, str]:
        """The head after gradients, and the loss on the way."""
        kind, lr = way
        offsets = RoundingOffsets(base, start, scheme, lr=lr, minmax_lr=lr / 5, minmax_limit=2.0)
        optimizer = make_optimizer(kind, offsets.parameter_groups())
        schedule = make_schedule(optimizer, "linear", STEPS)
        losses = []
        for tokens in self._minibatches():
            weight = offsets()
            leaf = weight.detach().requires_grad_()
            loss = self.loss(tokens, tokens, leaf)
            loss.backward()
            torch.autograd.backward([weight], [leaf.grad])
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            offsets.project()
            losses.append(float(loss.detach()))
        sixth = STEPS // 6
        ends = (sum(part) / sixth for part in (losses[:sixth], losses[-sixth:]))
        return offsets.export().dequantize(), " to ".join(f"{end:.4f}" for end in ends)

    def _minibatches(self) -> Iterator[torch.Tensor]:
        flat = torch.cat(self.inputs)
        order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(1))
        for step in range(STEPS):
            first = step * TOKENS % (len(flat) - TOKENS)
            yield flat[order[first : first + TOKENS]]


def main() -> None:
    """Print a table."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--type", default="q4_1")
    parser.add_argument("--bos", action="store_true", help="windows begin with the token of beginnings")
    parser.add_argument("--no-gradients", action="store_true")
    arguments = parser.parse_args()
    model, tokenizer = roundel.load(arguments.model)
    assert tokenizer is not None

    def rows(source: str, count: int, width: int) -> torch.Tensor:
        documents = read_documents(parse_sources(source)[0]).documents
        text = "\n\n".join(map(str, documents))[: 12 * count * width]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        own = width - arguments.bos
        parts = [ids[first : first + own] for first in range(0, count * own, own)]
        return torch.tensor([[tokenizer.bos_token_id] * arguments.bos + part for part in parts])

    bench = Bench(model, rows(arguments.calibration, 128, 256), rows(arguments.text, 12, 512))
    scheme, hessian = Scheme(type=arguments.type), Hessian()
    for inputs in bench.inputs:
        hessian.add(inputs)
    moments = hessian.mean()
    searched = make_start(bench.weight, scheme, "search", moments.diagonal())
    fed_back = gptq(bench.weight, moments, scheme, HessianOptions(), "search")
    print("| | head alone | lookups alone | both | KL while tuning |\n|---|---|---|---|---|")
    nearest = searched.quantize(bench.weight, scheme).dequantize()
    print(f"| searched | {bench.costs(nearest)} | |", flush=True)
    print(f"| error feedback | {bench.costs(fed_back.weight.dequantize())} | |", flush=True)
    starts = {"searched": (bench.weight, searched), "error feedback": (fed_back.compensated, fed_back.start)}
    for name, (base, start) in {} if arguments.no_gradients else starts.items():
        for way in WAYS:
            weight, losses = bench.tuned(base, start, scheme, way)
            print(f"| {name}, then {way[0]} {way[1]} | {bench.costs(weight)} | {losses} |", flush=True)


if __name__ == "__main__":
    main()
