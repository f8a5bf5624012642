"""Files of Roundel and of llama.cpp's own converter, of the same small models: every key and every number compared.

    python benchmarks/gguf_converter.py --llama PLACE --python PLACE/bin/python [--logits PLACE/bin/python] [names]

`--llama` is a checkout of llama.cpp (the sdist of llama-cpp-python 0.3.36 has one in vendor/llama.cpp), `--python` an
interpreter with what its converter needs: torch, transformers, sentencepiece. With `--logits`, an interpreter with
llama-cpp-python, the files are run and compared with transformers. Writes a table in Markdown to the standard output.

The models are those of tests/formats/gguf/tiny.py, with random weights, in folders as repositories have them. Where the
converter knows a tokenizer by the hash of some tokens, ours has no such hash: it is told the name that we find.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from formats.gguf.spm import gemma_tokenizer, llama_tokenizer, model_file, pieces
from formats.gguf.tiny import TINY, tiny_model
from formats.gguf.writing import file_tensors, write_file
from roundel.formats.gguf.metadata import Metadata, metadata_of
from roundel.model.source import open_source
from zoo import manual_text
from zoo.training import train_tokenizer, training_text

# Settings that the repositories' configs have, and that transformers writes under other names or not at all.
_AS_PUBLISHED: dict[str, dict[str, Any]] = {
    "gpt2": {"n_ctx": 1024},
    "falcon_old": {"num_kv_heads": 1},
    "mpt": {"architectures": ["MPTForCausalLM"]},
    "gpt_neox": {"rotary_pct": 0.25},
    "gpt_neox_serial": {"rotary_pct": 0.25},
    "cohere2": {"rotary_pct": 1.0},
    "minimax_m2": {"scoring_func": "sigmoid"},
}
# Settings that no repository has without a value.
_EMPTY = ("add_prefix_space",)
# Of the converter: the tiny model has no blocks that predict further tokens.
_OPTIONS = {"qwen3_5": ("--no-mtp",)}
_SENTENCEPIECE = ("phi3", "phi3_long", "nemotron", "ernie4_5")
_CHAT = ("qwen2", "qwen2_yarn", "qwen2_moe", "qwen3", "qwen3_moe", "glm", "glm4")
# Keys in which the files may differ, and why: ours alone (+), theirs alone (-), or not the same (!).
_REASONS = {
    "+tokenizer.ggml.add_?os_token": "said outright, where the converter leaves llama.cpp's default",
    "+*.rope.freq_base": "said outright: the converter leaves llama.cpp's default, 10000",
    "+tokenizer.ggml.add_space_prefix": "said outright: the converter leaves llama.cpp's default, true",
    "+falcon.attention.*_length": "said outright: the converter leaves llama.cpp's default, width by heads",
    "+phi3.rope.scaling.type": "the config's; llama.cpp goes by the tables of factors",
    "!falcon.context_length": "the config's, where the converter has 2048 for all",
    "!*.feed_forward_length": "the config's, where the converter supposes four times the width",
    "!chatglm.context_length": "the config's, where the converter takes the width",
    "!chatglm.attention.layer_norm_rms_epsilon": "the config's, where the converter has 1e-5 for all",
    "+tokenizer.ggml.unknown_token_id": "as the class of the tokenizer has it; it is in no file",
    "!tokenizer.ggml.unknown_token_id": "the tokenizer's, where the converter has 1 for every Nemotron",
    "-nemotron.rope.scaling.type": "llama.cpp's default, none",
    "-qwen35.attention.recurrent_layers": "it follows from the interval, which both have",
    "+general.file_type": "the converter leaves it out",
    "-tokenizer.ggml.add_sep_token": "of pairs of texts, which no such model reads",
    "-tokenizer.ggml.eot_token_id": "CodeGemma's, which the converter writes for every Gemma",
}


@dataclass(frozen=True)
class Outcome:
    """How the files of a model compare.

    Attributes:
        architecture: llama.cpp's name.
        tensors: of how many all numbers are equal, of how many.
        keys: of how many the values are equal, of how many.
        reasons: why keys differ.
        unexplained: keys that differ for no known reason, and tensors that differ.
    """

    architecture: str
    tensors: tuple[int, int] = (0, 0)
    keys: tuple[int, int] = (0, 0)
    reasons: tuple[str, ...] = ()
    unexplained: tuple[str, ...] = ()


@cache
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with some tokens that chats have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|user|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    found.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    )
    return found


def make_folder(name: str, folder: Path) -> None:
    """A model as a repository has it."""
    model = tiny_model(name)
    model.save_pretrained(folder)
    gemma = name.startswith("gemma")
    if gemma or name in _SENTENCEPIECE:
        tokenizer: Any = gemma_tokenizer() if gemma else llama_tokenizer()
        texts = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
        (folder / "tokenizer.model").write_bytes(model_file(texts[: len(pieces())], blank_first=not gemma))
    else:
        tokenizer = chat_tokenizer() if name in _CHAT else train_tokenizer()
    tokenizer.save_pretrained(folder)


def publish(name: str, folder: Path, tokenizer: Any) -> None:
    """Give its files what those of repositories have."""
    _edit(folder / "config.json", _AS_PUBLISHED.get(name, {}))
    added = {
        str(number): {"content": token.content, "special": token.special}
        for number, token in tokenizer.added_tokens_decoder.items()
    }
    about: dict[str, Any] = {"added_tokens_decoder": added}
    written = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if written["tokenizer_class"] == "TokenizersBackend":
        about["tokenizer_class"] = "PreTrainedTokenizerFast"  # as older versions, and repositories, call it
    _edit(folder / "tokenizer_config.json", about)


def _edit(path: Path, settings: dict[str, Any]) -> None:
    about = json.loads(path.read_text(encoding="utf-8")) | settings
    about = {key: value for key, value in about.items() if value is not None or key not in _EMPTY}
    path.write_text(json.dumps(about), encoding="utf-8")


def convert(llama: Path, python: Path, folder: Path, pre: str, path: Path) -> str:
    """Run the converter; what went wrong, or nothing."""
    options = [*_OPTIONS.get(folder.parent.name, ()), str(folder), "--outtype", "f32", "--outfile", str(path)]
    code = (
        "import runpy, sys; "
        f"sys.path[:0] = [{str(llama / 'gguf-py')!r}, {str(llama)!r}]; "
        "from conversion.base import TextModel; "
        f"TextModel.get_vocab_base_pre = lambda self, tokenizer: {pre!r}; "
        f"sys.argv = ['convert', *{options!r}]; "
        f"runpy.run_path({str(llama / 'convert_hf_to_gguf.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no word"])[-1]


def compared(theirs: Path, metadata: Metadata, tensors: dict[str, torch.Tensor]) -> Outcome:
    """What is in the converter's file against what would be in ours."""
    reader = gguf.GGUFReader(theirs)
    lines = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    mine = {key: value for key, value, _ in metadata}
    reasons, unexplained, equal = [], [], 0
    for key in dict.fromkeys([*lines, *mine]):
        mark = "+" if key not in lines else "-" if key not in mine else "!"
        if mark == "!" and _same(lines[key], mine[key]):
            equal += 1
            continue
        words = f"{mark}{key}"
        reason = next((why for pattern, why in _REASONS.items() if fnmatch(words, pattern)), None)
        if reason is None:
            unexplained.append(f"{words} ({str(lines.get(key))[:30]} / {str(mine.get(key))[:30]})")
        else:
            reasons.append(f"{words}: {reason}")
    alike = 0
    found = {tensor.name: tensor for tensor in reader.tensors}
    for name in dict.fromkeys([*found, *tensors]):
        if name in found and name in tensors and _numbers_same(found[name], tensors[name]):
            alike += 1
        else:
            unexplained.append(name)
    total = len({*lines, *mine}), len({*found, *tensors})
    name = mine["general.architecture"]
    return Outcome(name, (alike, total[1]), (equal, total[0]), tuple(reasons), tuple(unexplained))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) or (isinstance(one, list) and one and isinstance(one[0], float)):
        return np.shape(one) == np.shape(other) and bool(np.allclose(one, other, rtol=1e-6))
    return bool(one == other)


def _numbers_same(found: gguf.ReaderTensor, tensor: torch.Tensor) -> bool:
    numbers = gguf.dequantize(found.data, found.tensor_type)
    mine = tensor.float().numpy()
    if found.name.startswith("rope_"):  # computed, by other formulas
        return numbers.shape == mine.shape and bool(np.allclose(numbers, mine, rtol=1e-6))
    return numbers.shape == mine.shape and bool(np.array_equal(numbers, mine))


_RUN = """
import sys, numpy as np
from llama_cpp import Llama
path, ids, out = sys.argv[1:]
model = Llama(path, n_ctx=256, n_batch=256, logits_all=True, verbose=False, n_threads=1)
model.eval([int(i) for i in ids.split()])
np.save(out, np.array(model.scores[: model.n_tokens], dtype=np.float32))
"""


def divergence(python: Path, path: Path, source: Any) -> str:
    """Of llama.cpp's predictions from transformers', in nats a token, on a window's worth of text."""
    ids = source.tokenizer(manual_text()[:400], add_special_tokens=False)["input_ids"][:30]
    out = path.with_suffix(".npy")
    words = " ".join(map(str, ids))
    done = subprocess.run([python, "-c", _RUN, path, words, out], capture_output=True, text=True, check=False)
    if done.returncode:
        return "does not load"
    theirs = torch.from_numpy(np.load(out)).log_softmax(-1)
    with torch.no_grad():
        mine = source.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return f"{torch.nn.functional.kl_div(theirs, mine, log_target=True, reduction='batchmean').item():.0e}"


def row(name: str, options: argparse.Namespace, work: Path) -> tuple[str, Outcome | None]:
    """A line of the table, and what stands behind it."""
    folder = work / name / "tiny"  # llama.cpp goes by names of models, too, and looks for Phi-3's own tokens
    make_folder(name, folder)
    source = open_source(folder)
    metadata, tensors = metadata_of(source.model, source.tokenizer, folder), file_tensors(source.model)
    values = {key: value for key, value, _ in metadata}
    publish(name, folder, source.tokenizer)
    run = ""
    if options.logits:
        write_file(work / f"{name}-own.gguf", metadata, tensors)
        run = f" {divergence(options.logits, work / f'{name}-own.gguf', source)} |"
    wrong = convert(
        options.llama, options.python, folder, values["tokenizer.ggml.pre"], work / f"{name}.gguf"
    )
    if wrong:
        return f"| {name} | {values['general.architecture']} | does not convert | `{wrong[:80]}` |{run}", None
    found = compared(work / f"{name}.gguf", metadata, tensors)
    notes = "; ".join(found.unexplained) or "-"
    counts = f"{found.tensors[0]} of {found.tensors[1]} | {found.keys[0]} of {found.keys[1]}"
    return f"| {name} | {found.architecture} | {counts} | {notes} |{run}", found


def main() -> None:
    """Compare all, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama", type=Path, required=True, help="a checkout of llama.cpp")
    parser.add_argument("--python", type=Path, required=True, help="with what the converter needs")
    parser.add_argument("--logits", type=Path, help="an interpreter with llama-cpp-python")
    parser.add_argument("names", nargs="*", default=TINY)
    options = parser.parse_args()
    print(
        f"| model | architecture | tensors equal | keys equal | differ |{' nats |' if options.logits else ''}"
    )
    print(f"|---|---|---|---|---|{'---|' if options.logits else ''}")
    reasons: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as work:
        for name in options.names:
            line, found = row(name, options, Path(work))
            print(line, flush=True)
            for reason in found.reasons if found else ():
                reasons.setdefault(reason, []).append(name)
    print()
    for reason, names in reasons.items():
        print(f"* `{reason.partition(': ')[0]}`: {reason.partition(': ')[2]} ({len(names)} models)")


if __name__ == "__main__":
    main()
