"""Small trained models, one per architecture, made where the tests run.

Each is trained for some seconds on Python's reference manual, which every machine has, and kept in a cache
outside the repository. Trained weights have outliers and correlated inputs; random ones have neither, and
every quantizer looks the same on them.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCABULARY = 1024
WIDTH = 96
LAYERS = 2
_STEPS = 250
_ROWS, _LENGTH = 12, 128
_IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}

ARCHITECTURES = ("llama", "opt", "bloom", "gpt2")


def zoo_model(architecture: str) -> Path:
    """Folder of the trained model and its tokenizer; trained at the first call on a machine."""
    own_code = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "roundel-tests" / own_code
    folder = cache / architecture
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=cache))
        tokenizer = _train_tokenizer()
        tokenizer.save_pretrained(building)
        _train(_make(architecture), tokenizer).save_pretrained(building)
        try:
            building.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(building)
    return folder


def manual_text() -> str:
    """The reference manual's last fifth, which no model here was trained on."""
    names = sorted(topics)
    return "\n\n".join(topics[name] for name in names[-len(names) // 5 :])


def _training_text() -> list[str]:
    names = sorted(topics)
    return [topics[name] for name in names[: -len(names) // 5]]


def _train_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_text(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>")


def _make(architecture: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        if architecture == "llama":
            return LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=VOCABULARY,
                    hidden_size=WIDTH,
                    intermediate_size=256,
                    num_hidden_layers=LAYERS,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    max_position_embeddings=512,
                    tie_word_embeddings=False,
                    **_IDS,
                )
            )
        if architecture == "opt":
            return OPTForCausalLM(
                OPTConfig(
                    vocab_size=VOCABULARY,
                    hidden_size=WIDTH,
                    word_embed_proj_dim=WIDTH,
                    ffn_dim=256,
                    num_hidden_layers=LAYERS,
                    num_attention_heads=4,
                    max_position_embeddings=512,
                    dropout=0.0,
                    **_IDS,
                )
            )
        if architecture == "bloom":
            return BloomForCausalLM(
                BloomConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, n_layer=LAYERS, n_head=4, **_IDS)
            )
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=WIDTH,
                n_layer=LAYERS,
                n_head=4,
                n_positions=512,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                **_IDS,
            )
        )


def _train(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    ids = torch.tensor(tokenizer("\n\n".join(_training_text()), verbose=False)["input_ids"])
    generator = torch.Generator().manual_seed(11)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=_STEPS)
    model.train()
    for _ in range(_STEPS):
        starts = torch.randint(len(ids) - _LENGTH, (_ROWS,), generator=generator)
        batch = torch.stack([ids[s : s + _LENGTH] for s in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()
