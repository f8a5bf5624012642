"""Small trained models, one per architecture, made where the tests run.

Each is trained for some seconds on Python's reference manual, which every machine has, and kept in a cache
outside the repository. Trained weights have outliers and correlated inputs; random ones have neither, and
every quantizer looks the same on them.
"""

import hashlib
import os
import tempfile
from pathlib import Path

from filelock import FileLock

from zoo.configs import CONFIGS, LAYERS, OWN_CODE, VOCABULARY, WIDTH
from zoo.training import OWN_CODE_FOLDER, manual_text, train_tokenizer, trained

__all__ = [
    "ARCHITECTURES",
    "EVERY",
    "LAYERS",
    "MIXTURES",
    "OWN_CODE",
    "VOCABULARY",
    "WIDTH",
    "manual_text",
    "zoo_model",
]

# The four that most tests run on.
ARCHITECTURES = ("llama", "opt", "bloom", "gpt2")
EVERY = (*CONFIGS, *OWN_CODE)
# With experts.
MIXTURES = ("mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v3", "gpt_oss", "llama4", "jamba")


def zoo_model(name: str) -> Path:
    """Folder of the trained model and its tokenizer; trained at the first call on a machine."""
    caches = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "roundel-tests"
    cache = caches / _key(name)
    folder = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{name}.lock"):  # several processes test at the same time
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as building:
                made = Path(building) / name
                train_tokenizer().save_pretrained(made)
                trained(name).save_pretrained(made)
                made.rename(folder)
    return folder


def _key(name: str) -> str:
    """Changes with the files that decide what the model is, and with no others."""
    here = Path(__file__).parent
    files = [here / "configs.py", here / "training.py"]
    if name in OWN_CODE:
        files = [here / "training.py", *sorted(p for p in (OWN_CODE_FOLDER / name).iterdir() if p.is_file())]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
