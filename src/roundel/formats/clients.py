"""Commands by which clients open a folder, for its model card: data, a row for each client.

`Readers.clients` names who opens a written form, perhaps with what they need (`recent vLLM on a GPU`). A row here is
known by a name that occurs in such words; whoever adds a format with another client adds its row. A client without
a row is listed by its name alone.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Client:
    """A program that opens folders.

    Attributes:
        name: as it calls itself.
        known_by: what occurs of it in the words of a `Readers`; several, where several mean it.
        code: what a user types or writes. `{model}` stands for the folder or hub id, `{file}` for the first file of
            the kind that the client wants, `{auto_class}` for the class of transformers that opens the model, `{trust}`
            for the argument that runs code which comes with it; they are put in quoted as the language wants it.
        language: of the code.
        library: what the hub calls the library that opens it; empty where it has no name for it.
        ending: of the files that it opens; empty: it opens the folder.
        local: it opens what is on this machine, not hub ids.
    """

    name: str
    known_by: tuple[str, ...]
    code: str
    language: str = "bash"
    library: str = ""
    ending: str = ""
    local: bool = False


_TRANSFORMERS = """\
from transformers import AutoTokenizer, {auto_class}

tokenizer = AutoTokenizer.from_pretrained({model}{trust})
model = {auto_class}.from_pretrained({model}{trust})
inputs = tokenizer("The three states of matter are", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0]))"""

_GPTQMODEL = """\
from gptqmodel import GPTQModel

model = GPTQModel.load({model}{trust})
print(model.tokenizer.decode(model.generate("The three states of matter are")[0]))"""

CLIENTS = (
    Client(
        "transformers",
        ("transformers", "whatever opens the original"),
        _TRANSFORMERS,
        language="python",
        library="transformers",
    ),
    Client("vLLM", ("vLLM", "whatever opens the original"), "vllm serve {model}{trust}"),
    Client("SGLang", ("SGLang",), "python -m sglang.launch_server --model-path {model}{trust}"),
    Client("GPTQModel", ("GPTQModel",), _GPTQMODEL, language="python"),
    Client(
        "onnxruntime-genai",
        ("onnxruntime-genai",),
        "python -m onnxruntime_genai.models.builder -i {model} -o onnx-model -p int4 -e cpu",
        local=True,
    ),
    Client(
        "llama.cpp",
        ("llama.cpp",),
        'llama-cli -m {file} -p "The three states of matter are"',
        library="gguf",
        ending=".gguf",
        local=True,
    ),
    Client(
        "Ollama",
        ("Ollama",),
        "printf 'FROM ./%s\\n' {file} > Modelfile\nollama create my-model -f Modelfile\nollama run my-model",
        ending=".gguf",
        local=True,
    ),
    Client("LM Studio", ("LM Studio",), "lms import {file}", ending=".gguf", local=True),
    Client("Roundel", ("roundel",), 'roundel generate {model}{trust} "What are the three states of matter?"'),
)


def clients_of(words: str) -> list[Client]:
    """The rows of the clients that some words of a `Readers` mean."""
    return [client for client in CLIENTS if any(name in words for name in client.known_by)]
