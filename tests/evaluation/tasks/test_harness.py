"""The bridge against lm-eval by its own road, and against sums of log-probabilities: one file, for all ask it alike."""

import json
import logging
import math
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from originals import LAMBADA, PIQA, QUESTIONS, SUBJECTS, write_lines, write_originals

from roundel.activations.attach import ActivationQuantizer
from roundel.activations.kv_cache import new_cache, quantizing
from roundel.activations.rounding import quantize_vectors
from roundel.activations.scheme import Activations, ActivationScheme
from roundel.errors import CalibrationError, ModelError, RecipeError, RoundelError, Stopped
from roundel.evaluation.tasks import loading
from roundel.evaluation.tasks.harness import run_tasks
from roundel.evaluation.tasks.results import TaskResult, flips
from roundel.system.progress import Progress

pytestmark = pytest.mark.slow("runs lm-eval itself")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    write_originals(folder)
    return folder


@pytest.fixture
def loaded(llama: Path, load_model) -> tuple[Any, Any]:
    return load_model(llama)


def run_one(loaded: tuple[Any, Any], task: str, originals: Path, **options: Any) -> TaskResult:
    (result,) = run_tasks(*loaded, [task], data_dir=originals, **options)
    return result


@torch.no_grad()
def log_likelihood(
    model: Any, tokenizer: Any, context: str, answer: str, **inputs: Any
) -> tuple[float, bool]:
    """Of the answer's tokens, one whole pass, and whether each is the likeliest."""
    before = len(tokenizer(context)["input_ids"])
    ids = torch.tensor(tokenizer(context + answer)["input_ids"])
    scores = model(ids[None, :-1], **inputs).logits[0].log_softmax(-1)[before - 1 :]
    chosen = scores.gather(1, ids[before:, None])
    return float(chosen.sum()), bool((scores.argmax(-1) == ids[before:]).all())


# The rows of the hub, from which lm-eval reads for itself.
HUB: dict[str, tuple[str, list[dict[str, Any]], list[dict[str, Any]]]] = {
    "piqa": ("validation", [{"goal": g, "sol1": a, "sol2": b, "label": label} for g, a, b, label in PIQA], []),
    "lambada_openai": ("test", [{"text": text} for text in LAMBADA], []),
    "mmlu_sociology": (
        "test",
        *([{"question": row[0], "choices": list(row[1:5]), "answer": "ABCD".index(row[5])} for row in rows]
          for rows in (QUESTIONS[:3], QUESTIONS)),
    ),
}  # fmt: skip


def test_equal_to_lm_eval_by_its_own_road(
    llama: Path, loaded: tuple[Any, Any], originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data by the library datasets, the model by lm-eval from the folder: the same to the last digit."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    specs = []
    for task, (split, rows, dev) in HUB.items():
        write_lines(tmp_path / f"{task}.jsonl", rows)
        files = {split: str(tmp_path / f"{task}.jsonl")}
        if dev:
            write_lines(tmp_path / f"{task}-dev.jsonl", dev)
            files["dev"] = str(tmp_path / f"{task}-dev.jsonl")
        config = load_yaml(loading.task_manager([task]).task_index[task].yaml_path)
        kwargs = {"data_files": files, "cache_dir": str(tmp_path / "cache")}
        specs.append(
            config | {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": kwargs, "training_split": None}
            | ({"num_fewshot": 5} if dev else {})
        )  # fmt: skip
    wanted = lm_eval.simple_evaluate(
        model=HFLM(pretrained=str(llama), device="cpu"),
        tasks=specs,
        task_manager=TaskManager(include_defaults=False),
    )
    found = run_tasks(*loaded, list(HUB), data_dir=originals)
    assert [result.task for result in found] == list(HUB)
    for result in found:
        theirs = wanted["results"][result.task]
        for metric, (value, error) in result.metrics.items():
            assert (value, error) == (theirs[f"{metric},none"], theirs[f"{metric}_stderr,none"])
        assert len(result.metrics) == sum(",none" in key and "stderr" not in key for key in theirs)
        assert result.correct == [sample[result.metric] for sample in wanted["samples"][result.task]]
        assert result.fewshot == wanted["n-shot"][result.task]
        assert result.version == str(wanted["versions"][result.task])
    assert set(found[1].metrics) == {"perplexity", "acc"}  # one of them by bootstrap


def test_choices_are_compared_by_their_log_likelihoods(loaded: tuple[Any, Any], originals: Path) -> None:
    right, right_by_length = [], []
    for goal, first, second, label in PIQA:
        sums = [
            log_likelihood(*loaded, f"Question: {goal}\nAnswer:", f" {way}")[0] for way in (first, second)
        ]
        right.append(float((sums[1] > sums[0]) == bool(label)))
        right_by_length.append(float((sums[1] / len(second) > sums[0] / len(first)) == bool(label)))
    result = run_one(loaded, "piqa", originals)
    assert result.correct == right_by_length
    assert 0 < sum(right_by_length) < len(PIQA)  # an oracle that is always right or wrong would show nothing
    assert result.metric == "acc_norm"
    assert result.metrics["acc"][0] == pytest.approx(np.mean(right))
    assert result.value == pytest.approx(np.mean(right_by_length))
    assert result.stderr == pytest.approx(np.std(right_by_length, ddof=1) / math.sqrt(len(PIQA)))
    assert (result.documents, result.fewshot, result.source, result.note) == (6, 0, "piqa/dev.jsonl", "")
    batched = run_one(loaded, "piqa", originals, batch_size=5)
    assert batched.correct == result.correct


def lambada_oracle(model: Any, tokenizer: Any, texts: list[str], **inputs: Any) -> tuple[list[bool], float]:
    pairs = []
    for text in texts:
        context, _, last = text.rpartition(" ")
        made = {name: make() for name, make in inputs.items()}
        pairs.append(log_likelihood(model, tokenizer, context, f" {last}", **made))
    return [greedy for _, greedy in pairs], math.exp(-np.mean([log for log, _ in pairs]))


@torch.no_grad()
def test_lambada_is_the_last_word(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = loaded
    texts = list(LAMBADA)
    for text in LAMBADA:  # and what the model would say itself
        context = text.rpartition(" ")[0]
        ids = torch.tensor([tokenizer(context)["input_ids"]])
        for token in model(ids).logits[0, -1].topk(20).indices:
            word = tokenizer.decode(token)
            if word[0] == " " and word[1:].isalpha():
                texts.append(context + word)
                break
    write_lines(tmp_path / "lambada/lambada_test.jsonl", [{"text": text} for text in texts])
    greedy, perplexity = lambada_oracle(model, tokenizer, texts)
    result = run_one(loaded, "lambada_openai", tmp_path)
    assert result.metric == "acc"
    assert result.correct == greedy
    assert 0 < sum(greedy) < len(texts)
    assert result.metrics["perplexity"][0] == pytest.approx(perplexity, rel=1e-4)


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    from roundel.evaluation.tasks.lm import WatchedLM

    requests: list[tuple[str, str]] = []
    plain = WatchedLM.loglikelihood

    def record(self, some, disable_tqdm=False):
        requests.extend(request.args for request in some)
        return plain(self, some, disable_tqdm)

    with monkeypatch.context() as patch:
        patch.setattr(WatchedLM, "loglikelihood", record)
        yield requests


def test_mmlu_shows_the_five_examples_in_order(
    loaded: tuple[Any, Any], originals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown(row: tuple[str, ...]) -> str:
        a, b, c, d = row[1:5]
        return f"{row[0].strip()}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:"

    head = "The following are multiple choice questions (with answers) about sociology.\n\n"
    examples = "".join(f"{shown(row)} {row[5]}\n\n" for row in QUESTIONS)
    with recorded(monkeypatch) as requests:
        result = run_one(loaded, "mmlu_sociology", originals)
    assert requests == [
        (head + examples + shown(row), f" {letter}") for row in QUESTIONS[:3] for letter in "ABCD"
    ]
    assert result.fewshot == 5
    assert result.source == "mmlu/test/sociology_test.csv, examples from mmlu/dev/sociology_dev.csv"
    with recorded(monkeypatch) as requests:
        result = run_one(loaded, "mmlu_sociology", originals, fewshot=2)
    assert requests[0][0] == head + "".join(f"{shown(row)} {row[5]}\n\n" for row in QUESTIONS[:2]) + shown(
        QUESTIONS[0]
    )
    assert result.fewshot == 2


def test_a_group_is_its_documents_together(loaded: tuple[Any, Any], originals: Path) -> None:
    names = ["mmlu_social_sciences", "mmlu_sociology"]
    group, *parts = run_tasks(*loaded, names, data_dir=originals, batch_size=4)
    assert [part.task for part in parts] == [f"mmlu_{subject}" for subject in SUBJECTS]
    assert all(part.part_of == group.task for part in parts)
    assert group.part_of == ""
    assert group.documents == sum(part.documents for part in parts) == sum(2 + i % 3 for i in range(12))
    assert group.correct == [value for part in parts for value in part.correct]
    assert group.value == pytest.approx(np.mean(group.correct))
    assert group.fewshot == 5
    assert flips(group, group).share == 0
    (limited, *_) = run_tasks(*loaded, names[:1], data_dir=originals, limit=2, batch_size=4)
    assert limited.documents == 24
    assert limited.note == "the first documents of each of 12 tasks, 24 of 36"


def test_a_limit_takes_the_first_documents(loaded: tuple[Any, Any], originals: Path) -> None:
    whole = run_one(loaded, "piqa", originals)
    result = run_one(loaded, "piqa", originals, limit=4)
    assert (result.ids, result.correct) == (whole.ids[:4], whole.correct[:4])
    assert result.stderr == pytest.approx(np.std(result.correct, ddof=1) / 2)
    assert result.note == "the first 4 of 6 documents"
    assert run_one(loaded, "piqa", originals, limit=1).stderr is None
    with pytest.raises(RoundelError, match="numbers of documents"):
        flips(whole, result)


BOTH = Activations(ActivationScheme(3, False, static=False), ActivationScheme(2, False, static=False))


def test_quantized_activations_and_cache_are_at_work(loaded: tuple[Any, Any], originals: Path) -> None:
    """Against the same rounding by hooks and a cache that the test itself makes."""
    model, tokenizer = loaded
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    layers = [name for name in linears if "layers." in name]

    def rounded(module: Any, args: Any) -> Any:
        return (quantize_vectors(args[0], BOTH.inputs),)

    plain = run_one(loaded, "lambada_openai", originals).metrics["perplexity"][0]
    seen = [plain]
    for grids in (Activations(BOTH.inputs), Activations(kv=BOTH.kv), BOTH):
        hooks = []
        if grids.inputs is not None:
            hooks = [model.get_submodule(name).register_forward_pre_hook(rounded) for name in layers]
        cache = {"past_key_values": lambda: quantizing(new_cache(model.config), BOTH.kv)} if grids.kv else {}
        _, wanted = lambada_oracle(model, tokenizer, LAMBADA, **cache)
        for hook in hooks:
            hook.remove()
        quantizer = ActivationQuantizer(model, layers, grids)
        quantizer.enabled = True
        found = run_one(loaded, "lambada_openai", originals).metrics["perplexity"][0]
        quantizer.detach()
        assert found == pytest.approx(wanted, rel=1e-4)
        assert all(abs(found / other - 1) > 1e-3 for other in seen)
        seen.append(found)
    assert run_one(loaded, "lambada_openai", originals).metrics["perplexity"][0] == plain


def test_examples_come_from_training_documents_or_not_at_all(
    loaded: tuple[Any, Any], originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        CalibrationError, match="2 examples before each document of piqa .* only the documents that"
    ):
        run_one(loaded, "piqa", originals, fewshot=2)
    with recorded(monkeypatch) as requests:
        result = run_one(loaded, "arc_easy", originals, fewshot=1, limit=2)
    assert result.source == "arc/ARC-Easy-Test.jsonl, examples from arc/ARC-Easy-Dev.jsonl"
    assert all(context.count("Question:") == 2 for context, _ in requests)
    write_originals(tmp_path)
    rows = [{"goal": f"Training {i}.", "sol1": "a", "sol2": "b"} for i in range(4)]
    write_lines(tmp_path / "piqa/train.jsonl", rows)
    (tmp_path / "piqa/train-labels.lst").write_text("0\n1\n0\n1\n")
    with recorded(monkeypatch) as requests:
        result = run_one(loaded, "piqa", tmp_path, fewshot=2)
    assert result.fewshot == 2
    assert all(context.count("Question: Training") == 2 for context, _ in requests)


def test_long_documents_are_cut_as_lm_eval_does_and_that_is_said(
    loaded: tuple[Any, Any], originals: Path, tmp_path: Path
) -> None:
    model, tokenizer = loaded
    write_originals(tmp_path)
    long = {"question": "is it long", "passage": "It is long. " * 400, "label": True}
    write_lines(tmp_path / "boolq/val.jsonl", [long, {**long, "passage": "It is short."}])
    said: list[str] = []
    listener = Progress()
    listener.say = said.append
    result = run_one(loaded, "boolq", tmp_path, progress=listener)
    assert result.note == "2 of 4 requests longer than the model's 512 positions, cut from the left"
    assert said == [f"boolq: {result.note}"]
    whole = tokenizer(f"{long['passage']}\nQuestion: {long['question']}?\nAnswer: yes")["input_ids"]
    assert len(whole) > 513
    model.config.max_position_embeddings = 2
    with pytest.raises(ModelError, match="an answer of piqa has .* tokens, the model 2 positions"):
        run_one(loaded, "piqa", originals)


def test_nothing_is_left_changed(
    loaded: tuple[Any, Any], originals: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import lm_eval.api.metrics
    import lm_eval.models.huggingface
    import tqdm

    model, tokenizer = loaded
    assert tokenizer.pad_token is None
    model.config.tie_word_embeddings = True
    model.lm_head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach() * 1.5)
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    bootstrap = lm_eval.api.metrics.bootstrap_stderr
    run_tasks(model, tokenizer, ["piqa", "lambada_openai", "winogrande"], data_dir=originals)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert [module.training for module in model.modules()] == modes
    assert "tie_weights" not in vars(model)
    assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight * 1.5)
    assert tokenizer.pad_token is None
    assert lm_eval.models.huggingface.tqdm is tqdm.tqdm
    assert lm_eval.api.metrics.bootstrap_stderr is bootstrap
    assert logging.getLogger("lm_eval").level == logging.NOTSET
    assert capfd.readouterr() == ("", "")


class Listener(Progress):
    def __init__(self, patience: int = 1000) -> None:
        self.patience, self.open, self.done = patience, [], {}

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Progress]:
        self.open.append(title)
        self.done[title] = [0, total]
        yield self
        self.open.pop()

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done[self.open[-1]][0] += steps
        self.patience -= 1
        self.stop_asked = self.patience <= 0


def test_progress_counts_requests_and_stops(loaded: tuple[Any, Any], originals: Path) -> None:
    listener = Listener()
    run_tasks(*loaded, ["piqa", "arc_easy"], data_dir=originals, progress=listener, batch_size=2)
    assert listener.done == {"Tasks": [2, 2], "piqa": [12, 12], "arc_easy": [14, 14]}
    impatient = Listener(patience=3)
    with pytest.raises(Stopped):
        run_tasks(*loaded, ["piqa", "arc_easy"], data_dir=originals, progress=impatient)
    assert impatient.done["piqa"][0] == 3
    assert "tie_weights" not in vars(loaded[0])


@pytest.mark.parametrize("architecture", ["gpt2", "bloom"])
def test_a_tokenizer_without_special_tokens(architecture: str, load_model, originals: Path) -> None:
    from zoo import zoo_model

    model, tokenizer = load_model(zoo_model(architecture))
    wanted = run_one((model, tokenizer), "piqa", originals)
    tokenizer.bos_token = tokenizer.eos_token = None
    assert run_one((model, tokenizer), "piqa", originals) == wanted


def test_bad_input_is_one_error(
    loaded: tuple[Any, Any], originals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options, words in (
        ({"limit": 0}, "limit 0: at least 1"),
        ({"fewshot": -1}, "fewshot -1: at least 0"),
        ({"batch_size": 0}, "batch_size 0: at least 1"),
    ):
        with pytest.raises(RecipeError, match=words):
            run_tasks(*loaded, ["piqa"], data_dir=originals, **options)
    with pytest.raises(RoundelError, match="tasks need the model's tokenizer"):
        run_tasks(loaded[0], None, ["piqa"], data_dir=originals)
    with pytest.raises(
        RoundelError, match="lm-eval cannot run mmlu_sociology .*exceeds the 5 that are available"
    ):
        run_one(loaded, "mmlu_sociology", originals, fewshot=9)
    loading._manager.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(RoundelError, match=r"pip install 'roundel\[eval\]'"):
        run_one(loaded, "piqa", originals)


def test_every_document_has_an_id_that_tells_its_content(
    loaded: tuple[Any, Any], originals: Path, tmp_path: Path
) -> None:
    write_originals(tmp_path)
    path = tmp_path / "lambada/lambada_test.jsonl"
    path.write_text(path.read_text().replace("global", "local"))
    first, other = (run_one(loaded, "lambada_openai", folder) for folder in (originals, tmp_path))
    assert len(set(first.ids)) == len(LAMBADA)
    with pytest.raises(RoundelError, match="lambada_openai 2 .* of the reference is lambada_openai 2"):
        flips(first, other)
    assert json.loads(json.dumps(first.metrics))  # plain numbers
