"""Text that a model writes itself: from its own distribution at temperature 1, whatever its generation config says."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

import roundel
from roundel.calibration.options import CalibrationOptions
from roundel.calibration.self_text import sample_from_model
from zoo import zoo_model

OPTIONS = CalibrationOptions(nsamples=3, seqlen=24)
# Each as a folder may have it. Together they are as good a nonsense as any.
KEYS: dict[str, Any] = {
    # how tokens are drawn
    "do_sample": False, "temperature": 0.2, "top_k": 2, "top_p": 0.3, "min_p": 0.3, "top_h": 0.2, "typical_p": 0.3,
    "epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "repetition_penalty": 2.0, "encoder_repetition_penalty": 2.0,
    "no_repeat_ngram_size": 1, "encoder_no_repeat_ngram_size": 1, "bad_words_ids": [[n] for n in range(5, 300)],
    "suppress_tokens": list(range(5, 300)), "begin_suppress_tokens": list(range(5, 600)),
    "sequence_bias": [[[7], 90.0]], "guidance_scale": 3.0, "renormalize_logits": True, "remove_invalid_values": True,
    "watermarking_config": {"greenlist_ratio": 0.1, "bias": 30.0},
    # search
    "num_beams": 3, "num_beam_groups": 3, "diversity_penalty": 1.0, "length_penalty": 2.0, "early_stopping": True,
    "penalty_alpha": 0.6, "constraints": ["x"], "force_words_ids": [[7]], "dola_layers": "high", "low_memory": True,
    # how long, and how many
    "max_length": 4, "max_new_tokens": 3, "min_length": 99, "min_new_tokens": 99, "max_time": 0.0,
    "stop_strings": ["e"], "num_return_sequences": 3, "eos_token_id": list(range(300)), "pad_token_id": 9,
    "forced_eos_token_id": 7, "forced_bos_token_id": 7, "exponential_decay_length_penalty": [1, 9.0], "bos_token_id": 9,
    "decoder_start_token_id": 9,
    # with what help
    "prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 2, "assistant_early_exit": 1, "num_assistant_tokens": 3,
    "is_assistant": True, "token_healing": True, "use_cache": False, "cache_implementation": "static",
    "cache_config": {"nbits": 4}, "prefill_chunk_size": 2, "compile_config": {}, "use_mtp": True, "max_cache_len": 2,
    # in what form
    "return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_attentions": True,
    "output_hidden_states": True,
    # nobody's
    "a_key_of_another_library": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any]:
    return roundel.load(zoo_model("llama"))


def config_with(keys: dict[str, Any]) -> GenerationConfig:
    config = GenerationConfig()
    for key, value in keys.items():
        setattr(config, key, copy.deepcopy(value))
    return config


@pytest.fixture(scope="module")
def wanted(model: tuple[Any, Any]) -> torch.Tensor:
    writer, tokenizer = model
    kept, writer.generation_config = writer.generation_config, GenerationConfig()
    rows = sample_from_model(writer, tokenizer, OPTIONS)
    writer.generation_config = kept
    return rows


@pytest.mark.parametrize("keys", [*([key] for key in KEYS), list(KEYS)], ids=lambda keys: "+".join(keys[:2]))
def test_no_generation_config_shapes_the_text(
    keys: list[str], model: tuple[Any, Any], wanted: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, tokenizer = model
    config = config_with({key: KEYS[key] for key in keys})
    before = copy.deepcopy(config.__dict__)
    monkeypatch.setattr(writer, "generation_config", config)
    assert torch.equal(sample_from_model(writer, tokenizer, OPTIONS), wanted)
    assert writer.generation_config is config
    assert config.__dict__ == before


def test_every_key_of_transformers_is_tried() -> None:
    """A key that a later release brings is to be added above."""
    further = {"num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_lookbehind",
               "assistant_ensemble_weight", "target_lookbehind", "speculation_type", "disable_compile",
               "continuous_batching_config", "transformers_version"}  # fmt: skip
    known = {key for key in GenerationConfig().__dict__ if not key.startswith("_")}
    assert known <= {*KEYS, *further}


def test_the_rows_are_draws_from_the_models_own_distribution(
    model: tuple[Any, Any], wanted: torch.Tensor
) -> None:
    """By hand: a softmax and a draw for each token, one seed for all."""
    writer, tokenizer = model
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    rows = torch.full((OPTIONS.nsamples, 1), start)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(OPTIONS.seed)
        while rows.shape[1] <= OPTIONS.seqlen:
            chances = writer(input_ids=rows).logits[:, -1].float().softmax(-1)
            rows = torch.cat([rows, torch.multinomial(chances, 1)], 1)
    assert torch.equal(rows[:, 1:], wanted)


def test_a_folder_with_settings_of_its_own(tmp_path: Path, wanted: torch.Tensor) -> None:
    """In its generation config, and in its model config, where old releases kept them."""
    settings = {
        "min_p": 0.3,
        "num_beams": 4,
        "stop_strings": ["e"],
        "num_return_sequences": 2,
        "do_sample": True,
    }
    for number, name in enumerate(("generation_config.json", "config.json")):
        folder = Path(shutil.copytree(zoo_model("llama"), tmp_path / str(number)))
        path = folder / name
        content = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(content | settings))
        writer, tokenizer = roundel.load(folder)
        assert torch.equal(sample_from_model(writer, tokenizer, OPTIONS), wanted)


def test_another_function_in_generates_place(
    model: tuple[Any, Any], wanted: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers puts one there from a folder's custom_generate/."""
    writer, tokenizer = model
    monkeypatch.setattr(writer, "generate", lambda *_, **__: None, raising=False)
    assert torch.equal(sample_from_model(writer, tokenizer, OPTIONS), wanted)


def test_the_config_is_the_models_own_again_after_an_error(
    model: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, tokenizer = model
    config = config_with(KEYS)
    monkeypatch.setattr(writer, "generation_config", config)
    monkeypatch.setattr(writer, "forward", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        sample_from_model(writer, tokenizer, OPTIONS)
    assert writer.generation_config is config
