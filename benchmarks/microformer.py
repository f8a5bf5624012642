"""A true fp32 model whose widths are multiples of 256, as llama.cpp's own converter makes a GGUF file of it.

    pip download --no-deps microformer-mgm==0.5.8 && unzip microformer_mgm-*.whl -d WHEEL
    python benchmarks/microformer.py WHEEL OUT.gguf --converter LLAMA_CPP/convert_hf_to_gguf.py
    python benchmarks/llama_cpp.py microformer=OUT.gguf --tools BUILD/bin --folder WORK \\
        --text self --calibration self --window 64 --limit 96

microformer-mgm (MIT) is a GPT-2 of 8.9 M parameters whose tokens are genera of microbes; a text is a community, the
most unusually abundant genus first. Its corpus is not in the package, so it is measured on communities that it writes
itself: of 64 genera or more, as most end before 120 and what follows the end means nothing.

llama.cpp reads tokens from text, and has no tokenizer whose words are genera: its `whitespace` one is told that token k
is the k-th of the CJK ideographs. Weights and metadata are the converter's own.
"""

import json
import runpy
import sys
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

FIRST = 0x4E00
START, END = 2, 3


def main() -> None:
    """Write the file."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path, help="the unpacked package")
    parser.add_argument("out", type=Path)
    parser.add_argument("--converter", type=Path, required=True)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        _folder(arguments.wheel / "mgm/resources/general_model", Path(folder))
        _convert(arguments.converter, Path(folder), arguments.out)


def _folder(package: Path, folder: Path) -> None:
    """The model as a folder of safetensors."""
    config = GPT2Config.from_pretrained(package)
    weights = torch.load(package / "pytorch_model.bin", map_location="cpu", weights_only=True)
    model = GPT2LMHeadModel(config)
    missing, _ = model.load_state_dict(weights, strict=False)
    assert not set(missing) - {"lm_head.weight"}, missing
    model.save_pretrained(folder)
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    about["n_ctx"] = config.n_positions  # older configs have it, and the converter reads it
    (folder / "config.json").write_text(json.dumps(about), encoding="utf-8")


def _convert(converter: Path, folder: Path, out: Path) -> None:
    """The converter, told of this vocabulary."""
    sys.path[:0] = [str(converter.parent / "gguf-py"), str(converter.parent)]
    from conversion.gpt2 import GPT2Model

    def vocabulary(self: Any) -> None:
        writer, count = self.gguf_writer, self.hparams["vocab_size"]
        writer.add_tokenizer_model("whitespace")
        writer.add_tokenizer_pre("whitespace")
        writer.add_token_list([chr(FIRST + number) for number in range(count)])
        writer.add_token_types([1] * count)
        writer.add_token_merges(["- -"])  # one is expected, and this one joins nothing
        writer.add_bos_token_id(START)
        writer.add_eos_token_id(END)
        writer.add_add_bos_token(False)

    GPT2Model.set_vocab = vocabulary
    sys.argv = [converter.name, str(folder), "--outfile", str(out), "--outtype", "f32"]
    runpy.run_path(str(converter), run_name="__main__")


if __name__ == "__main__":
    main()
