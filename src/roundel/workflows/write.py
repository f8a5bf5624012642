"""Writing a result: into a folder that appears when all in it is checked, from the journal's pieces."""

from collections.abc import Collection
from itertools import chain
from pathlib import Path
from typing import Any

from roundel.engine.job import Job
from roundel.formats import CONTAINERS, Container, Content, Piece
from roundel.formats.companions import Companions
from roundel.formats.config_file import finish_config
from roundel.formats.folder import atomic_folder
from roundel.formats.reload import check_extra
from roundel.formats.source_files import SourceFiles
from roundel.model.blocks import BlockStack
from roundel.model.extra_tensors import ExtraTensors
from roundel.model.source import SourceModel
from roundel.model.storage import Storage
from roundel.model.stored_types import StoredTypes
from roundel.records.folder import measure_folder
from roundel.records.manifest import write_manifest
from roundel.workflows.arguments import ModelOptions
from roundel.workflows.destination import Destination


def make_content(
    job: Job,
    source: SourceModel,
    extra: ExtraTensors,
    files: SourceFiles,
    *,
    whole: bool,
    blocks: str | None,
) -> Content:
    """What a container is to write.

    Args:
        job: finished; its journal has the pieces.
        source: the original.
        extra: tensors of it that are carried over.
        files: that it came from.
        whole: the folder is checked by opening all of it.
        blocks: pattern of the decoder blocks' names; None: they are found.
    """
    journal, place = job.journal, source.place
    assert journal is not None
    # Weights of a model that was made of something are stored in no folder as it has them.
    made = place is None or place.is_gguf or source.read_from or source.parents
    checkpoint = None if place is None or made else place.folder
    return Content(
        model=job.model,
        schemes=job.coverage.schemes,
        read_pieces=lambda: chain(journal.pieces(), [_outside_blocks(job)]),
        activations=job.activations,
        whole=whole,
        blocks=blocks,
        extra=extra,
        types=StoredTypes(job.model, checkpoint),
        files=files,
        label=job.recipe.mixture or job.recipe.type or "",
    )


def write_folder(
    job: Job,
    destination: Destination,
    content: Content,
    companions: Companions,
    manifest: dict[str, Any],
    options: ModelOptions,
) -> None:
    """Write the output folder, check it, and let it appear.

    Args:
        job: finished.
        destination: a folder.
        content: for the container.
        companions: files that go along with the weights.
        manifest: gets sizes and hashes of the files.
        options: how the model was opened.

    Raises:
        RoundelError: a failed check; no output appears then.
    """
    journal, container = destination.journal, CONTAINERS[job.recipe.format]
    assert journal is not None
    with (
        job.progress.stage("Writing and checking", 1),
        atomic_folder(
            journal.target, destination.options.overwrite, journal.folder, job.progress.say
        ) as folder,
    ):
        fill_folder(folder, container, content, companions, options.trust_remote_code)
        manifest |= measure_folder(folder, manifest["original"]["parameters"])
        write_manifest(folder, manifest)
        journal.seal()


def fill_folder(
    folder: Path, container: Container, content: Content, companions: Companions, trust_remote_code: bool
) -> None:
    """Write everything that a client reads into an empty folder, and check it.

    Args:
        folder: empty.
        container: in whose format.
        content: for it.
        companions: files that go along with the weights.
        trust_remote_code: as the model was opened.

    Raises:
        RoundelError: a failed check.
    """
    container.write(folder, content)
    if content.activations is not None:
        content.activations.save(folder)
    sources = companions.sources
    if container.whole:
        companions.write_licences(folder)
    else:
        source = sources[0] if sources else None
        finish_config(folder, source, content.model.config, trust_remote_code)
        companions.write(folder)
    container.verify(folder, content, trust_remote_code)
    check_extra(folder, content.extra)


def _outside_blocks(job: Job) -> Piece:
    """What is in no block, and was not quantized."""
    coverage = job.coverage
    done = {f"{view.name}." for view in coverage.outside}
    if coverage.tied_head is not None:
        done.add(f"{coverage.tied_head.name}.weight")
    return outside_blocks(job.model, job.stack, job.storage, done)


def outside_blocks(model: Any, stack: BlockStack, storage: Storage, done: Collection[str]) -> Piece:
    """What is in no block, but for the names that begin with one of `done`."""
    with storage.around(model, stack):
        others = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in model.state_dict().items()
            if not stack.holds(name) and not any(name.startswith(prefix) for prefix in done)
        }
    return Piece(others=others)
