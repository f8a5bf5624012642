"""Writing a result: into a folder that appears when all in it is checked, from the journal's pieces."""

from itertools import chain
from typing import Any

from roundel.engine.job import Job
from roundel.formats import CONTAINERS, Content, Piece
from roundel.formats.companions import Companions
from roundel.formats.config_file import finish_config
from roundel.formats.folder import atomic_folder
from roundel.formats.reload import check_extra
from roundel.formats.source_files import SourceFiles
from roundel.model.extra_tensors import ExtraTensors
from roundel.model.source import SourceModel
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
        container.write(folder, content)
        if job.activations is not None:
            job.activations.save(folder)
        sources, trust = companions.sources, options.trust_remote_code
        if container.whole:
            companions.write_licences(folder)
        else:
            finish_config(folder, sources[0] if sources else None, job.model.config, trust)
            companions.write(folder)
        container.verify(folder, content, trust)
        check_extra(folder, content.extra)
        manifest |= measure_folder(folder, manifest["original"]["parameters"])
        write_manifest(folder, manifest)
        journal.seal()


def _outside_blocks(job: Job) -> Piece:
    """What is in no block, and was not quantized."""
    coverage, stack = job.coverage, job.stack
    done = {f"{view.name}." for view in coverage.outside}
    if coverage.tied_head is not None:
        done.add(f"{coverage.tied_head.name}.weight")
    with job.storage.around(job.model, stack):
        others = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in job.model.state_dict().items()
            if not stack.holds(name) and not any(name.startswith(prefix) for prefix in done)
        }
    return Piece(others=others)
