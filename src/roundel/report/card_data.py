"""The metadata of a model card: what the hub files a model under.

What the original's card says of licence, language and subject is passed on, with what only this result has: how it was
quantized, from what, and by which library it is opened. The hub's own library writes the YAML.
"""

from collections import Counter
from math import prod
from typing import Any

from huggingface_hub import ModelCardData

from roundel.formats.clients import clients_of

_HUB = "https://huggingface.co"


def card_data(manifest: dict[str, Any], repo: str | None) -> ModelCardData:
    """The metadata of a result.

    Args:
        manifest: of its folder.
        repo: its id on the hub, where it goes there.
    """
    origin, recipe = manifest.get("origin") or {}, manifest["recipe"]
    found = licence(manifest)
    formats = [
        str(recipe.get("format", "")),
        str(recipe.get("method", "")),
        f"{prevailing_bits(manifest)}-bit",
    ]
    tags = ["quantized", "roundel", *(word for word in formats if word), *origin.get("tags", ())]
    base = list(origin.get("base_model", ()))
    return ModelCardData(
        base_model=base[0] if len(base) == 1 else base or None,
        base_model_relation=origin.get("relation") or None,
        license=found["id"] or "unknown",
        license_name=found["name"] or None,
        license_link=found["link"] or None,
        language=list(origin.get("language", ())) or None,
        library_name=library(manifest),
        pipeline_tag=origin.get("pipeline_tag") or "text-generation",
        tags=list(dict.fromkeys(tags)),
        quantized_by=repo.partition("/")[0] if repo else "roundel",
    )


def prevailing_bits(manifest: dict[str, Any]) -> int:
    """Of the codes of most quantized weights: a mixture gives matrices several widths."""
    weights: Counter[int] = Counter()
    for layer in manifest.get("layers", ()):
        if layer.get("bits") is not None:
            weights[layer["bits"]] += prod(layer["shape"])
    return weights.most_common(1)[0][0] if weights else int(manifest["recipe"]["bits"])


def library(manifest: dict[str, Any]) -> str:
    """The library that opens a folder, in the hub's word: another's, where one does."""
    clients = (client for words in manifest.get("opens_in", ()) for client in clients_of(words))
    return next((client.library for client in clients if client.library), "roundel")


def licence(manifest: dict[str, Any]) -> dict[str, str]:
    """Identifier, name and link of the result's licence, each empty where it is not known.

    Of several models that it is made of, a licence that they do not share is none of the hub's.
    """
    found = (manifest.get("origin") or {}).get("licences", ())
    stated = list({(one["id"], one["name"], one["link"]): one for one in found}.values())
    if not all(one["id"] for one in stated) or not stated:
        return {"id": "", "name": "", "link": ""}
    if len(stated) > 1:
        return {"id": "other", "name": " and ".join(_called(one) for one in stated), "link": ""}
    (one,) = stated
    return {"id": one["id"], "name": one["name"], "link": _link(manifest, one)}


def _called(one: dict[str, str]) -> str:
    return one["name"] or (one["id"] if one["id"] != "other" else "") or f"that of {one['of']}"


def _link(manifest: dict[str, Any], one: dict[str, str]) -> str:
    """Where the licence's text is: what its owner links to, if that can be reached; else the file that came."""
    link = one["link"]
    if link.startswith(("https://", "http://")):
        return link
    files = manifest.get("files") or {}
    if link in files:
        return link
    if link and "/" in one["of"]:
        return f"{_HUB}/{one['of']}/blob/main/{link.removeprefix('./')}"
    return one["file"] if one["file"] in files and one["id"] in ("other", "") else ""
