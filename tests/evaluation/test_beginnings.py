"""Windows of local texts begin as the model's texts begin; those of the papers' data sets as in the papers."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

import roundel
from roundel.calibration.prefix import text_prefix
from roundel.errors import CalibrationError, RecipeError
from roundel.evaluation.windows import EvaluationText, evaluation_windows
from roundel.model.source import SourceModel
from roundel.workflows.evaluation_options import EvaluationOptions
from roundel.workflows.measuring import judge_conventions
from zoo.prefixes import FORMS, tokenizer_with


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("source", ["file", "pydoc"])
def test_local_texts(form: str, source: str, held_out: Path) -> None:
    tokenizer = tokenizer_with(FORMS[form][0])
    prefix = text_prefix(tokenizer)
    text = held_out.read_text(encoding="utf-8")
    found = evaluation_windows(str(held_out) if source == "file" else source, tokenizer, 40)
    assert found.windows[:, : len(prefix)].tolist() == [prefix] * len(found.windows)
    if source == "file":
        running = tokenizer.encode(text, add_special_tokens=False)
        own = found.windows[:, len(prefix) :].flatten().tolist()
        assert own == running[: len(own)]
        assert len(running) - len(own) < 40 - len(prefix)
    said = f"each begins with {''.join(FORMS[form][1])}" in found.convention
    assert said == bool(prefix)
    assert found.left_out == ()


@pytest.fixture
def data(tmp_path: Path, held_out: Path) -> Path:
    """Local copies of WikiText-2 and of C4's shard."""
    (tmp_path / "wiki.test.raw").write_text(held_out.read_text(encoding="utf-8"), encoding="utf-8")
    documents = held_out.read_text(encoding="utf-8").split("\n\n")
    rows = "\n".join(json.dumps({"text": text}) for text in documents)
    (tmp_path / "c4-validation.00000-of-00008.json").write_text(rows + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
def test_the_papers_data_sets_are_cut_to_the_letter(form: str, data: Path) -> None:
    tokenizer = tokenizer_with(FORMS[form][0])
    rows = [f"{line}\n" if line.strip() else "" for line in (data / "wiki.test.raw").read_text().split("\n")]
    ids = tokenizer("\n\n".join(rows[:-1] if rows[-1] == "" else rows))["input_ids"]
    found = evaluation_windows("wikitext2", tokenizer, 40, data_dir=data)
    assert found.windows.flatten().tolist() == ids[: found.windows.numel()]
    assert found.left_out == tuple(text_prefix(tokenizer))
    assert ("cut without" in found.convention) == bool(found.left_out)


@pytest.mark.parametrize("text", ["wikitext2", "c4"])
def test_windows_of_data_sets_that_begin_as_texts_do_on_request(text: str, data: Path) -> None:
    tokenizer = tokenizer_with("<s> $A")
    found = evaluation_windows(text, tokenizer, 20, data_dir=data, add_bos=True)
    (start,) = text_prefix(tokenizer)
    assert (found.windows == start).sum(1).tolist() == [1] * len(found.windows)
    assert (found.windows[:, 0] == start).all()
    assert found.windows.shape[1] == 20


def test_local_texts_cut_as_in_the_papers_on_request(held_out: Path) -> None:
    tokenizer = tokenizer_with("<s> $A")
    found = evaluation_windows(str(held_out), tokenizer, 40, add_bos=False)
    ids = tokenizer(held_out.read_text(encoding="utf-8"))["input_ids"]
    assert found.windows.flatten().tolist() == ids[: found.windows.numel()]


def test_a_window_that_holds_nothing_else(held_out: Path) -> None:
    with pytest.raises(CalibrationError, match=r"holds nothing but the 2 .* a larger --window is expected"):
        evaluation_windows(str(held_out), tokenizer_with("[gMASK] <s> $A"), 2)


def test_bos_without_a_text() -> None:
    with pytest.raises(RecipeError, match="add_bos is for texts"):
        EvaluationOptions(text=[], tasks=["piqa"], add_bos=True)


class Leaning(torch.nn.Module):
    """Knows the next token (the present one plus one) with the begin-of-text token in view, and loses it without.

    Args:
        lost: how far the logit of the right token falls without it.
    """

    dtype = torch.float32

    def __init__(self, lost: float) -> None:
        super().__init__()
        self.lost = lost
        self.place = torch.nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(vocab_size=32)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        logits = torch.zeros(*input_ids.shape, 32)
        sure = 6.0 - (0.0 if int(input_ids[0, 0]) == 1 else self.lost)
        logits.scatter_(2, (input_ids[..., None] + 1) % 32, sure)
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize(("lost", "unsuited"), [(5.0, True), (0.1, False)])
def test_a_convention_that_does_not_suit_the_model_says_so(lost: float, unsuited: bool) -> None:
    windows = (torch.arange(200) % 30 + 2).view(10, 20)
    cut = EvaluationText("wikitext2", windows, "as the papers cut it", (1,))
    source = SourceModel("models/leaning", Leaning(lost), None)
    (found,) = judge_conventions(source, [cut], EvaluationOptions(text=["wikitext2"]))
    assert ("does not suit leaning" in found.convention) == unsuited
    if unsuited:
        # The loss of a right answer among 32, by hand; one in 30 steps goes back to 2 and is a surprise.
        step = lambda sure: torch.tensor([sure, *[0.0] * 31]).softmax(0)  # noqa: E731
        hits = (windows[1:4, 1:-1] == windows[1:4, :-2] + 1).double()
        losses = [-(hits * step(s)[0].log() + (1 - hits) * step(s)[1].log()) for s in (1.0, 6.0)]
        for loss in losses:
            assert f"{float(loss.mean().exp()):.4g}" in found.convention
    assert found.windows is windows
    # Windows that begin with the token, and texts of other models, are not looked at.
    begun = EvaluationText("file", windows, "whole", ())
    assert judge_conventions(source, [begun], EvaluationOptions(text=["file"])) == [begun]


def test_the_words_reach_the_user(llama: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every convention unsuited: in the figures of eval and of compare, unless windows begin as texts do."""
    monkeypatch.setattr("roundel.workflows.measuring._UNSUITED", 0.0)
    model, tokenizer = roundel.load(llama)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", 0)]
    )
    how: dict[str, Any] = {"text": "wikitext2", "window": 40, "limit": 5, "data_dir": data}
    for add_bos, said in ((None, True), (True, False)):
        found = roundel.evaluate(model, tokenizer=tokenizer, add_bos=add_bos, **how)
        assert ("does not suit" in found.texts[0].convention) == said
        compared = roundel.compare([model], llama, tokenizer=tokenizer, add_bos=add_bos, **how)
        for of in (compared["reference"], *compared["models"]):
            assert ("does not suit" in of["quality"]["texts"][0]["convention"]) == said
