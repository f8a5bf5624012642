"""Quantize with auto-round, in an environment that has it: what benchmarks/fast.py calls.

    python benchmarks/in_auto_round.py MODEL tokens.pt OUTPUT --bits 3 --group-size 64 --iters 100

Its own defaults (min/max start, best minibatch), on calibration rows that are given as token ids.
"""

from argparse import ArgumentParser

import torch
from auto_round import AutoRound
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Quantize and write."""
    parser = ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("tokens")
    parser.add_argument("output")
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--group-size", type=int, required=True)
    parser.add_argument("--iters", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    rows = torch.load(arguments.tokens)
    data = [{"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in rows]
    quantizer = AutoRound(
        model, tokenizer, bits=arguments.bits, group_size=arguments.group_size, sym=False, iters=arguments.iters,
        dataset=torch.utils.data.DataLoader(data, batch_size=None), nsamples=len(rows), seqlen=rows.shape[1],
        batch_size=arguments.batch_size, seed=arguments.seed, device_map="cpu",
    )  # fmt: skip
    quantizer.quantize_and_save(arguments.output, format="auto_round")


if __name__ == "__main__":
    main()
