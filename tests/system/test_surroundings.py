"""What a call does, and what it leaves, in whatever state its caller is."""

import asyncio
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

import roundel

pytestmark = pytest.mark.slow("repeats a run in every state of a caller")

# `self` calibration runs the model's own generation, tuning needs gradients and autocast, the rest is read and written.
RECIPE = {"method": "autoround", "bits": 3, "group_size": 32, "iters": 4, "calibration": "self"}
RECIPE |= {"nsamples": 8, "seqlen": 32, "batch_size": 4, "format": "roundel"}


def written(model: Path, folder: Path) -> str:
    """The hash of everything that was quantized."""
    roundel.quantize(model, roundel.Recipe.create(**RECIPE), output=folder)
    digest = sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def plain(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(llama, tmp_path_factory.mktemp("plain") / "out")


@contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def coarse_products():
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextmanager
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextmanager
def casting_weights():
    """Autocast that has cast weights already."""
    weight = torch.ones(4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        weight @ weight
        yield


STATES: dict[str, Callable[[], AbstractContextManager]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "default dtype": default_dtype,
    "default device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast in autocast": casting_weights,
    "autocast of half precision": lambda: torch.autocast("cpu", torch.float16),
    "deterministic": deterministic,
    "coarse products": coarse_products,
    "warnings are errors": warnings_are_errors,
    "anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
}


def state() -> tuple:
    """All that belongs to the caller."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.get_rng_state().numpy().tobytes() if torch.get_default_device().type == "cpu" else b"",
        warnings.filters[:],
        tqdm.__init__,
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )


@pytest.mark.parametrize("name", STATES)
def test_same_bytes_in_every_state_and_the_state_is_as_it_was(
    name: str, llama: Path, plain: str, tmp_path: Path
) -> None:
    with STATES[name]():
        before = state()
        assert written(llama, tmp_path / "out") == plain
        assert state() == before
        with pytest.raises(roundel.RoundelError):
            roundel.quantize(tmp_path / "absent", output=tmp_path / "other")
        assert state() == before


def test_same_bytes_in_other_threads_at_the_same_time(llama: Path, plain: str, tmp_path: Path) -> None:
    found: dict[int, str] = {}

    def work(number: int) -> None:
        torch.set_num_threads(1)
        found[number] = written(llama, tmp_path / str(number))

    before = state()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {0: plain, 1: plain}
    assert state() == before


def test_same_bytes_in_a_running_event_loop(llama: Path, plain: str, tmp_path: Path) -> None:
    async def work() -> str:
        return written(llama, tmp_path / "out")

    assert asyncio.run(work()) == plain


# A process of its own: one that forks must not have the threads of pytest.
_FORK = """
import os, sys
from pathlib import Path
import roundel, torch
sys.path[:0] = [sys.argv[1], os.path.dirname(sys.argv[1])]
from test_surroundings import written
torch.set_num_threads(2)
torch.ones(2048, 2048) @ torch.ones(2048, 2048)  # OpenMP has its threads now
torch.ones(4096, 4096).exp_()
child = os.fork()
if child == 0:
    try:
        print(written(Path(sys.argv[2]), Path(sys.argv[3])), flush=True)
        os._exit(0)
    finally:
        os._exit(1)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_same_bytes_after_a_fork(llama: Path, plain: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FORK, str(Path(__file__).parent), str(llama), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "2"},
    )
    assert done.stdout.split() == [plain], done.stderr


def test_a_model_that_was_made_in_inference_mode(llama: Path) -> None:
    recipe = roundel.Recipe.create(**RECIPE)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    wanted = roundel.quantize(AutoModelForCausalLM.from_pretrained(llama), recipe, tokenizer=tokenizer)
    with torch.inference_mode():
        opened = AutoModelForCausalLM.from_pretrained(llama)
        made = AutoModelForCausalLM.from_config(opened.config)
        made.load_state_dict(opened.state_dict())
        assert any(parameter.is_inference() for parameter in made.parameters())
        found = roundel.quantize(made, recipe, tokenizer=tokenizer)
        ids = torch.arange(20)[None]
        assert torch.equal(found.model(ids).logits, wanted.model(ids).logits)


def test_evaluating_and_running_in_every_state(llama: Path, held_out: Path) -> None:
    def figures() -> tuple:
        found = roundel.evaluate(llama, reference=llama, text=str(held_out), window=32, limit=2)
        said = roundel.generate(llama, "The statement", max_new_tokens=4)
        model, _ = roundel.load(llama)
        return found.texts, said, next(model.parameters()).dtype

    wanted = figures()
    for make in STATES.values():
        with make():
            assert figures() == wanted


_SILENT = """
import sys
from pathlib import Path
import roundel
model, text, out = sys.argv[1:]
keys = dict(group_size=32, iters=2, nsamples=8, seqlen=32, calibration="self")
recipe = roundel.Recipe.create(method="autoround", bits=4, **keys)
roundel.plan(model, recipe)
roundel.inspect(model, recipe)
roundel.quantize(model, recipe, output=f"{out}/one", held_out=text)
roundel.quantize(model, recipe, output=f"{out}/streamed", stream=True, held_out=text)
both = [recipe.with_settings(name="a"), recipe.with_settings(bits=3, name="b")]
roundel.sweep(model, both, f"{out}/many", held_out=None)
roundel.evaluate(f"{out}/one", reference=model, text=text, window=32, limit=2)
found = roundel.compare([f"{out}/one"], model, text=text, window=32, limit=2)
roundel.load(f"{out}/one")
roundel.generate(f"{out}/one", "The statement", max_new_tokens=2)
roundel.render_report(f"{out}/one")
"""


@pytest.mark.reports
def test_nothing_is_said_where_nobody_listens(llama: Path, held_out: Path, tmp_path: Path) -> None:
    quiet = (
        "TRANSFORMERS_VERBOSITY",
        "HF_HUB_DISABLE_PROGRESS_BARS",
        "TQDM_DISABLE",
        "COMPRESSED_TENSORS_LOG_DISABLED",
    )
    env = {name: value for name, value in os.environ.items() if name not in quiet}
    done = subprocess.run(
        [sys.executable, "-c", _SILENT, str(llama), str(held_out), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**env, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "always::UserWarning"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""


def test_bars_of_other_threads_are_drawn_meanwhile(llama: Path, held_out: Path) -> None:
    drawn = []

    class Listening(roundel.Progress):
        def advance(self, steps: int = 1, note: str = "") -> None:
            thread = threading.Thread(target=lambda: drawn.append(tqdm(total=1).disable))
            thread.start()
            thread.join()
            drawn.append(tqdm(total=1).disable)

    roundel.evaluate(llama, text=str(held_out), window=32, limit=1, progress=Listening())
    assert drawn == [False, True]
