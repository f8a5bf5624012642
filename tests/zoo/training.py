"""The tokenizer of all models, and their training: some seconds each on Python's reference manual."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from zoo.configs import CONFIGS, OWN_CODE, VOCABULARY

OWN_CODE_FOLDER = Path(__file__).parent / "own_code"
# Trained with the loss that spreads tokens over the experts, where the class has one.
_BALANCED = ("mixtral", "qwen2_moe", "gpt_oss", "jamba")


@dataclass(frozen=True)
class _Schedule:
    steps: int = 200
    rows: int = 6
    length: int = 128


_SCHEDULES = {
    **dict.fromkeys(("llama", "opt", "bloom", "gpt2"), _Schedule(steps=250, rows=12)),
    # Slower by the step: three blocks, or a scan.
    **dict.fromkeys(("gemma3", "deepseek_v3", "llama4", "mamba2"), _Schedule(steps=150)),
    # Without its kernels a state space is a loop over tokens, whose backward pass is quadratic in the length.
    "jamba": _Schedule(steps=180, rows=6, length=32),
}


def manual_text() -> str:
    """The reference manual's last fifth, which no model here was trained on."""
    names = sorted(topics)
    return "\n\n".join(topics[name] for name in names[-len(names) // 5 :])


def training_text() -> list[str]:
    """The manual's other chapters."""
    names = sorted(topics)
    return [topics[name] for name in names[: -len(names) // 5]]


@cache
def train_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>")


@cache
def training_ids() -> torch.Tensor:
    """The training text as one row of token ids."""
    return torch.tensor(train_tokenizer()("\n\n".join(training_text()), verbose=False)["input_ids"])


@torch.enable_grad()  # whoever asks for a model may do so under no_grad
def trained(name: str) -> PreTrainedModel:
    """The model, trained; the same weights on every call."""
    ids, schedule = training_ids(), _SCHEDULES.get(name, _Schedule())
    more = {"output_router_logits": True} if name in _BALANCED else {}
    generator = torch.Generator().manual_seed(11)
    model = _make(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=schedule.steps)
    for _ in range(schedule.steps):
        starts = torch.randint(len(ids) - schedule.length, (schedule.rows,), generator=generator)
        batch = torch.stack([ids[s : s + schedule.length] for s in starts])
        loss = model(input_ids=batch, labels=batch, **more).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
    return model.eval()


def _make(name: str) -> PreTrainedModel:
    own = name in OWN_CODE
    with torch.random.fork_rng():
        torch.manual_seed(7)
        if own:
            config = AutoConfig.from_pretrained(OWN_CODE_FOLDER / name, trust_remote_code=True)
        else:
            config_class, arguments = CONFIGS[name]
            config = config_class(**arguments)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=own)
