import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
# Of the commands that tests start; several at a time would wait for each other's threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import huggingface_hub.constants as constants
import pytest
import torch
from hypothesis import settings
from transformers import AutoModelForCausalLM, AutoTokenizer

import roundel
from hub import Hub
from zoo import ARCHITECTURES, manual_text, zoo_model

# Laws that several files of tests share say what they compared, as a test does.
pytest.register_assert_rewrite("bad_inputs.law", "model.stored.forms")

# Models this small lose more time handing work to a second thread than it saves.
torch.set_num_threads(1)

# How long an example takes is the machine's matter, and says nothing about what is tested.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

SHARED = Path(__file__).parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that is left out of the quick answer says why."""
    for item in items:
        for mark in item.iter_markers("slow"):
            if len(mark.args) != 1:
                raise pytest.UsageError(f"{item.nodeid} is slow: why, in a few words, is expected")


@pytest.fixture(autouse=True, scope="module")
def _reports(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs leave a report where a test file is marked for it: of models this small, it takes longer than the run."""
    if request.node.get_closest_marker("reports"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("roundel.workflows.run.write_report", lambda *_: "")
        yield


@pytest.fixture(scope="session", params=ARCHITECTURES)
def any_model(request: pytest.FixtureRequest) -> Path:
    """Folder of a trained model of each architecture in turn."""
    return zoo_model(request.param)


@pytest.fixture(scope="session")
def llama() -> Path:
    return zoo_model("llama")


@pytest.fixture(scope="session")
def gpt2() -> Path:
    return zoo_model("gpt2")


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file that no zoo model was trained on: some hundred windows, as every measurement tokenizes all of it."""
    path = tmp_path_factory.mktemp("text") / "manual.txt"
    path.write_text(manual_text()[:30_000], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def folder_kl(held_out: Path):
    """KL of a folder or an in-memory result to its original."""

    def measure(result: roundel.Quantized | Path, original: Path, limit: int = 12) -> float:
        folder = isinstance(result, Path)
        return (
            roundel.evaluate(
                result if folder else result.model,
                tokenizer=None if folder else result.tokenizer,
                reference=original,
                text=str(held_out),
                window=64,
                limit=limit,
                packed=False,  # as the model in memory
            )
            .texts[0]
            .kl.mean.value
        )

    return measure


@pytest.fixture
def load_model():
    def load(folder: Path):
        return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    return load


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    folder = tmp_path / "hub-cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that can be reached."""
    hub = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    threading.Thread(target=hub.server.serve_forever, daemon=True).start()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
    shutil.rmtree(hub.home)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Data sets as they were published."""
    return _shared("data")


@pytest.fixture(scope="session")
def tinystories() -> Path:
    return _shared("models/tinystories-656k")


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip("the shared development data are not on this machine")
    return folder
