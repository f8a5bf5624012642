"""From one format into another: the same integers, or the same numbers under the name that the other has for them.

Nothing is rounded. What a format cannot hold is refused before anything is written, with the setting by which the
original would have to be quantized again.
"""

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from roundel.activations.attach import attach_saved
from roundel.activations.scheme import Activations
from roundel.engine.journal import Journal, remove_stale
from roundel.errors import FormatError, ModelError
from roundel.formats import CONTAINERS, Container, Content
from roundel.formats.companions import Companions
from roundel.formats.folder import atomic_folder, check_target
from roundel.formats.gguf.file import open_file
from roundel.formats.readers import Readers
from roundel.formats.shards import SHARD_BYTES
from roundel.formats.source_files import SourceFiles
from roundel.grid.equivalent import on_grid
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.grid.scheme import Scheme
from roundel.model.extra_tensors import ExtraTensors
from roundel.model.linears import LinearView
from roundel.model.sixteen_bits import convert, type_of_file
from roundel.records.exported import exported_manifest
from roundel.records.folder import measure_folder
from roundel.records.manifest import write_manifest
from roundel.records.outcome import LayerRecord
from roundel.system.progress import Progress
from roundel.workflows.original import original_bytes
from roundel.workflows.recorded import recorded_layers
from roundel.workflows.report import carry_report, read_report
from roundel.workflows.write import fill_folder
from roundel.workflows.written import WrittenFolder

_AGAIN = ". Nothing is rounded here: with another setting, quantize the original again"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a folder is exported.

    Attributes:
        like: a file in the output's format whose metadata it gets.
        overwrite: what Roundel wrote there may be replaced.
        blocks: pattern of the decoder blocks' full names; None: they are found.
        trust_remote_code: run modeling code that comes with the model.
        progress: gets every message and step.
    """

    like: Path | None = None
    overwrite: bool = False
    blocks: str | None = None
    trust_remote_code: bool = False
    progress: Progress


def export_folder(folder: Path, format: str, output: Path, options: ExportOptions) -> dict[str, Any]:
    """Write a folder that Roundel wrote in another format; the manifest of the new one.

    Args:
        folder: the output of a run, or of an export.
        format: a name of `CONTAINERS`.
        output: folder to write.
        options: how.

    Raises:
        RoundelError: bad input or a failed check; no output appears then.
    """
    say = options.progress.say
    if format not in CONTAINERS:
        raise FormatError(f"no format {format}: one of {', '.join(CONTAINERS)} is expected")
    if not folder.exists():
        raise ModelError(f"no folder {folder}: one that roundel quantize wrote is expected")
    remove_stale(output, say)
    check_target(output, options.overwrite, folder if folder.is_dir() else folder.parent)
    with Journal(output) as journal:
        written = WrittenFolder.open(
            folder,
            journal.converted,
            trust_remote_code=options.trust_remote_code,
            blocks=options.blocks,
        )
        export = Export(written, CONTAINERS[format], options)
        report = read_report(written.folder)
        with (
            options.progress.stage("Writing and checking", 1),
            atomic_folder(output, options.overwrite, journal.folder, say) as building,
        ):
            manifest = export.write(building)
        carry_report(output, report, manifest, options.progress)
    return manifest


class Export:
    """One folder on its way into another format.

    Args:
        written: the folder.
        container: of the new one.
        options: how.

    Raises:
        FormatError: the format does not hold it.
    """

    def __init__(self, written: WrittenFolder, container: Container, options: ExportOptions) -> None:
        self.written, self.container, self.options = written, container, options
        self.model, say = written.source.model, options.progress.say
        if container is written.container:
            raise FormatError(
                f"{written.folder} is in the format {container.name} already: copy it, or choose another --format"
            )
        self.files = SourceFiles(written.source.place, written.source.tokenizer, options.like)
        if written.gguf is not None and container.name != "dense":
            self._keep_sixteen_bits(written.gguf)
        self.activations = attach_saved(self.model, written.folder)
        self.schemes = {name: self._scheme(name, scheme) for name, scheme in written.schemes.items()}
        self.readers = self._ask()
        self._refuse_finer()
        self.records = self._convert_all()
        say(self.readers.summary)
        carries = bool(written.source.extra) and not container.whole
        self.extra = written.source.extra if carries else ExtraTensors()
        if written.source.extra and not carries:
            say(f"{written.source.extra.summary}, without a place in {container.name}: left out")

    def _keep_sixteen_bits(self, file: Path) -> None:
        """A GGUF file is read into float32: what is not quantized gets a type of 16 bits again, if that holds it."""
        first = type_of_file(self.model, open_file(file).matrix_kinds)
        if first is None:
            return
        for dtype in dict.fromkeys((first, torch.float16, torch.bfloat16)):
            if all(torch.equal(t.to(dtype).to(t.dtype), t) for _, t in self.written.others()):
                convert(self.model, dtype)
                words = str(dtype).removeprefix("torch.")
                self.options.progress.say(f"What is not quantized will be in {words}, which holds all of it")
                return

    def _scheme(self, name: str, scheme: Scheme) -> Scheme:
        width = LinearView(name, self.model.get_submodule(name)).shape[1]
        return self.container.scheme_for(scheme, width, self.model.dtype)

    @property
    def _grids(self) -> Activations:
        return self.activations.grids if self.activations else Activations()

    def _ask(self) -> Readers:
        """Whether the format holds it, before a weight is read."""
        written = self.written
        layers = recorded_layers(written.records, self.schemes, written.manifest, self.model)
        try:
            self.container.check(layers, self.model, self._grids, self.files)
        except FormatError as error:
            raise self._refusal(str(error)) from error
        return self.container.readers(layers, self.model, self._grids)

    def _refusal(self, why: str) -> FormatError:
        return FormatError(
            f"{self.written.folder} cannot become {self.container.name} as it is: {why}{_AGAIN}"
        )

    def _refuse_finer(self) -> None:
        """What is not quantized keeps its numbers, too."""
        dtype = self.container.others
        for name, tensor in self.written.others() if dtype is not None else ():
            if tensor.is_floating_point() and not torch.equal(tensor.to(dtype).to(tensor.dtype), tensor):
                words = str(dtype).removeprefix("torch.")
                raise self._refusal(
                    f"{name} is not quantized, has numbers that {words} does not hold, and {self.container.name} holds "
                    f"all such tensors in {words}: use a model in {words}"
                )

    def _weight(self, name: str) -> QuantizedWeight:
        """The integers of a Linear as they are to be written."""
        weight = self.written.weight(name)
        try:
            return on_grid(weight, self.schemes[name])
        except FormatError as error:
            raise self._refusal(f"{name}: {error}") from error

    def _convert_all(self) -> list[LayerRecord]:
        """The coverage table with the grids that layers will have; every weight is converted once, to see it done."""
        records, before, after = [], 0, 0
        for record in self.written.records:
            if record.name not in self.schemes:
                records.append(_unquantized(record) if self.written.gguf is not None else record)
                continue
            weight = self._weight(record.name)
            scheme, old = weight.scheme, self.written.schemes[record.name]
            before += old.stored_bits(*weight.shape)
            after += scheme.stored_bits(*weight.shape)
            records.append(record.quantized_as(weight))
        if after > before:
            weights = sum(prod(record.shape) for record in records if record.bits is not None)
            self.options.progress.say(
                f"The same numbers take {after / weights:.3f} bits per weight there, and {before / weights:.3f} here: "
                "groups are smaller there, and repeat what they have in common"
            )
        return records

    def write(self, folder: Path) -> dict[str, Any]:
        """Fill an empty folder, check it, and list it: its manifest.

        Raises:
            RoundelError: a failed check.
        """
        written, options = self.written, self.options
        source, recipe = written.source, written.manifest["recipe"]
        content = Content(
            model=self.model,
            schemes=self.schemes,
            read_pieces=lambda: written.pieces(self._weight),
            activations=self.activations,
            whole=original_bytes(source) <= SHARD_BYTES,
            blocks=options.blocks,
            extra=self.extra,
            types=written.types,
            files=self.files,
            label=(recipe.get("mixture") or recipe.get("type") or "")
            if self.schemes == written.schemes
            else "",
        )
        companions = Companions.find([written.folder], source.tokenizer, options.trust_remote_code)
        fill_folder(folder, self.container, content, companions, options.trust_remote_code)
        clients = list(self.readers.clients)
        manifest = exported_manifest(
            written.manifest, written.folder, self.records, self.container.name, clients
        )
        manifest |= measure_folder(folder, manifest["original"]["parameters"])
        write_manifest(folder, manifest)
        return manifest


def _unquantized(record: LayerRecord) -> LayerRecord:
    """A matrix that stayed in a GGUF file as it was, and is dense in every other format."""
    if record.type is None:
        return record
    return replace(
        record,
        reason=f"{record.type} in the GGUF file before: dense here",
        type=None,
        bits_per_weight=None,
        paper_bits=None,
        outliers=None,
    )
