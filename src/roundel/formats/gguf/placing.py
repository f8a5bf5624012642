"""The layout of a model: where in a GGUF file of some architecture each of its tensors goes."""

from typing import Any

from gguf import MODEL_ARCH_NAMES, TensorNameMap, get_tensor_name_map

from roundel.errors import FormatError
from roundel.formats.gguf.architectures import architecture
from roundel.formats.gguf.keys import blocks_of
from roundel.formats.gguf.layout import Layout, Place
from roundel.formats.gguf.moving import expert_places, transposed_in
from roundel.formats.gguf.rules import EXPERTS, Named, as_it_is

_SUFFIXES = (".weight", ".bias")


def layout_of(model: Any, arch: str) -> Layout:
    """Where every tensor of a model goes.

    Experts that share a tensor are in it twice: by the tensor's name, where a place's rows are those of the matrix that
    it names as `expert`, and one by one as the Linears `TENSOR.NUMBER.weight` of a divided model (model/experts.py).

    Args:
        model: its config, and its tensors' names and shapes; they may be absent.
        arch: `general.architecture` of the file.

    Raises:
        FormatError: the architecture is not known, or has no place for a tensor.
    """
    rules = (*architecture(arch).rules, *EXPERTS)
    config = model.config.get_text_config()
    names = _names(arch, blocks_of(config))
    transposed, twins = transposed_in(model), _twins(model)
    layout: Layout = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in twins:
            layout[name] = []
            continue
        shape = tuple(tensor.mT.shape if name in transposed else tensor.shape)
        named = Named(name, shape, _file_name(names, name, model.base_model_prefix), config)
        places = next((rule.places for rule in rules if rule.fits(named)), as_it_is)(named)
        _check_names(name, arch, places)
        layout[name] = places
        layout.update(expert_places(name, places, named.shape))
    return layout


def _names(arch: str, blocks: int) -> TensorNameMap:
    known = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    return get_tensor_name_map(known[arch], blocks)


def _file_name(names: TensorNameMap, name: str, prefix: str) -> str:
    """A tensor's name in the file; some architectures' names are known without the base model's prefix only."""
    suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")
    stem = name.removesuffix(suffix)
    known = names.get_name(stem) or names.get_name(stem.removeprefix(f"{prefix}."))
    return f"{known}{suffix}" if known else ""


def _twins(model: Any) -> set[str]:
    """Names of a parameter that has another name before: a head that is tied to the embeddings."""
    seen: dict[int, str] = {}
    found = set()
    embeddings = model.get_input_embeddings().weight
    seen[id(embeddings)] = next(n for n, p in model.named_parameters() if p is embeddings)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if seen.setdefault(id(parameter), name) != name:
            found.add(name)
    return found


def _check_names(name: str, arch: str, places: list[Place]) -> None:
    if any(not place.name for place in places):
        raise FormatError(
            f"{name} has no place in a GGUF file: the architecture {arch!r} of llama.cpp has no such tensor, so it "
            "would compute something else; take another --format"
        )
