"""What an output folder says of the integers in it: the grid of every Linear, and whether more belongs to it."""

from pathlib import Path
from typing import Any

import torch

from roundel.errors import ModelError
from roundel.formats import INTEGER_FILES, Layer, shard_files
from roundel.formats.integers import IntegerFiles
from roundel.grid.scheme import Scheme
from roundel.recipe import Recipe
from roundel.records.outcome import LayerRecord
from roundel.workflows.decide import layer_of


def recorded_schemes(folder: Path, manifest: dict[str, Any], model: Any) -> dict[str, Scheme]:
    """The scheme of every quantized Linear, as it was tuned.

    Args:
        folder: the output.
        manifest: of it.
        model: as it was opened.

    Raises:
        ModelError: the manifest speaks of other layers than the model has, or of no grid.
    """
    stems = [stem for stem in INTEGER_FILES if shard_files(folder, stem)]
    said = IntegerFiles(folder, stems[0]).schemes if stems else {}
    found = {}
    for plain in manifest["layers"]:
        name = plain["name"]
        if plain.get("bits") is None:
            continue
        try:
            model.get_submodule(name)
            found[name] = said.get(name) or _scheme_of(plain, manifest["recipe"], model.dtype)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"the manifest of {folder} does not say how {name} is quantized, or the model has no such layer: the "
                "folder as roundel quantize wrote it is expected"
            ) from error
    if not found:
        raise ModelError(
            f"no layer of {folder} is quantized by Roundel: there is nothing to export; use it as it is"
        )
    return found


def _scheme_of(plain: dict[str, Any], recipe: dict[str, Any], dtype: torch.dtype) -> Scheme:
    if plain.get("type") is not None:
        return Scheme(type=plain["type"])
    # All keys are there, those without effect as well: nothing to be validated again.
    scheme = Recipe.model_construct(**recipe).scheme_for(plain["name"], dtype)
    if scheme is None:
        raise ValueError("left out by its recipe")
    fields = scheme.model_dump() | {key: plain[key] for key in ("bits", "group_size", "sym")} | {"type": None}
    if fields["sym"]:
        fields |= {"round_zero": True, "zero_bits": None, "zero_sym": False}
    return Scheme(**fields)


def recorded_layers(
    records: list[LayerRecord], schemes: dict[str, Scheme], manifest: dict[str, Any], model: Any
) -> list[Layer]:
    """What a container is asked to carry.

    Args:
        records: of the folder.
        schemes: the grids of the layers that are asked about.
        manifest: of the folder.
        model: its names and shapes.
    """
    recipe = Recipe.model_construct(**manifest["recipe"])
    return [
        layer_of(record, schemes[record.name], model, recipe, outliers=bool(record.outliers))
        for record in records
        if record.name in schemes
    ]
