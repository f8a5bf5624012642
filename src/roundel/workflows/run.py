"""One model with one recipe, from what the caller asks for to the written folder."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch

from roundel.activations.attach import ActivationQuantizer, attached
from roundel.calibration.gather import Calibration, for_sources
from roundel.engine.count_bytes import make_plan
from roundel.engine.coverage import check_complete
from roundel.engine.footprint import ActivationFootprint, bytes_of_batch
from roundel.engine.job import Job
from roundel.engine.plan import Plan
from roundel.engine.streams import StreamHome
from roundel.engine.trial import Trial, Tried, run_trial
from roundel.errors import FormatError, ModelError, OutputError
from roundel.formats import CONTAINERS
from roundel.formats.companions import Companions
from roundel.formats.gguf.file import open_file
from roundel.formats.gguf.unread import unread_settings
from roundel.formats.shards import SHARD_BYTES
from roundel.formats.source_files import SourceFiles
from roundel.model.experts import rejoin
from roundel.model.extra_tensors import ExtraTensors
from roundel.model.mark import marking, put_mark
from roundel.model.origin import Origin, find_origin
from roundel.model.sixteen_bits import in_stored_type
from roundel.model.storage import InMemory
from roundel.model.untie import untie_head
from roundel.recipe import Recipe
from roundel.records.folder import weight_bytes
from roundel.records.manifest import build_manifest, versions
from roundel.records.outcome import Outcome
from roundel.system.devices import autocast_dtype, keep_freed_memory
from roundel.workflows.common import Common
from roundel.workflows.data import CalibrationReader
from roundel.workflows.decide import decide_on, find_readers
from roundel.workflows.destination import Destination
from roundel.workflows.open import describe_result
from roundel.workflows.original import describe_original, original_bytes
from roundel.workflows.report import write_report
from roundel.workflows.request import ModelRequest
from roundel.workflows.write import make_content, write_folder

# Keys of a recipe that decide no integer.
_NO_MATTER = ("name", "description", "format", "extra_tensors")


@dataclass(frozen=True)
class Quantized:
    """What `quantize` returns.

    Attributes:
        model: the model with dequantized weights in its Linears; activations are quantized as the recipe says.
            None where the blocks were streamed (`load` opens the output).
        tokenizer: the model's, or None.
        weights: the integers of every quantized Linear, by full name. None where the blocks were streamed
            (`read_integers` reads those of some formats).
        manifest: everything about the run as plain data.
        output: the written folder, or None.
        no_report: why the written folder has no report, and how to make it; empty where it has one.
        uploaded: address of its page on the hub; empty where it was not uploaded.
    """

    model: Any
    tokenizer: Any | None
    weights: Any
    manifest: dict[str, Any]
    output: Path | None
    no_report: str = ""
    uploaded: str = ""


class Run:
    """Quantizing one model with one recipe.

    Args:
        request: model and data.
        recipe: what to do.
        device: where blocks compute.
        home: where streams of activations are, and whose shares of them.
        destination: where the result goes.
        common: what other runs on the model found out.

    Attributes:
        tried: a block, where one was tried to choose what the run's time suffices for.

    Raises:
        RoundelError: bad input, found before the work.
    """

    def __init__(
        self,
        request: ModelRequest,
        recipe: Recipe,
        device: torch.device,
        home: StreamHome,
        destination: Destination,
        common: Common | None = None,
    ) -> None:
        if device.type == "cpu":
            keep_freed_memory()  # before anything is computed
        self.began, self.common = time.perf_counter(), common or Common()
        if recipe.needs_calibration:
            recipe = for_sources(recipe, request.calibration)
        self.request, self.recipe, self.device, self.home = request, recipe, device, home
        self.destination, self.ranks, self.progress = destination, home.ranks, request.options.listener
        self.resident = psutil.Process().memory_info().rss
        self.source = request.open(destination.stream_with)
        self.model = self.source.model  # of streamed blocks it has names and shapes
        if attached(self.model) is not None:
            raise ModelError(
                f"{self.source.name} is quantized already: the original, unquantized model is expected"
            )
        if self.source.read_from:
            self.progress.say(f"The original: {self.source.read_from}")
        container = None if destination.target is None else CONTAINERS[recipe.format]
        if destination.options.like is not None and not (container is not None and container.whole):
            raise FormatError(
                f"--like gives a GGUF file its metadata, and {recipe.format} is to be written: leave --like (like=) "
                "out, or set format=gguf and a type"
            )
        if self.source.place is not None and self.source.place.gguf is not None:
            file, said = open_file(self.source.place.gguf), []
            if container is not None and not container.whole:
                said.append(in_stored_type(self.model, file.matrix_kinds))
            said.append(unread_settings(file, self.model.config))
            for words in filter(None, said):
                self.progress.say(words)
        self.stack, self.coverage = decide_on(
            self.model, recipe, request.options.blocks, container, self.source.extra, self._files
        )
        self.readers = None if container is None else find_readers(self.coverage, recipe, self.model)
        if self.readers is not None:
            self.progress.say(self.readers.summary)
        carries = recipe.extra_tensors and not (container is not None and container.whole)
        self.extra = self.source.extra if carries else ExtraTensors()
        if self.source.extra:
            why = "extra_tensors=false" if not recipe.extra_tensors else f"{recipe.format} has none for them"
            what = "carried over as they are" if self.extra else f"left out ({why})"
            kind = type(self.model).__name__
            self.progress.say(
                f"{self.source.extra.summary} of the checkpoint, without a place in {kind}: {what}"
            )
        self.tried: Tried | None = None
        self._reader = CalibrationReader(
            request, recipe, self.source, destination.journal, self.common, self.ranks
        )

    @property
    def _files(self) -> SourceFiles:
        return SourceFiles(self.source.place, self.source.tokenizer, self.destination.options.like)

    @property
    def streamed(self) -> bool:
        """Whether blocks are never in memory together."""
        return self.destination.stream_with is not None

    @cached_property
    def data(self) -> Calibration | None:
        """Calibration tokens of all ranks."""
        return self._reader.read()

    @cached_property
    def original(self) -> dict[str, Any]:
        """Figures of the unquantized model, for the manifest."""
        found = self.ranks.broadcast_object(lambda: self.common.fingerprint(self.source))
        return describe_original(self.source, found)

    @cached_property
    def companions(self) -> Companions:
        """What goes along with the weights."""
        source, request = self.source, self.request
        return Companions.find(
            source.folders,
            source.tokenizer,
            request.options.trust_remote_code,
            in_memory=request.in_memory,
            untouched=not request.in_memory and request.tokenizer is None,
        )

    @cached_property
    def origin(self) -> Origin:
        """What is known of the original for the card."""
        return find_origin(self.source)

    @property
    def _checks_whole(self) -> bool:
        """Whether the output is checked by opening all of it."""
        return not self.streamed or original_bytes(self.source) <= SHARD_BYTES

    @property
    def _amp(self) -> str:
        return str(autocast_dtype(self.device, self.recipe.amp) or torch.float32).removeprefix("torch.")

    def begin(self) -> None:
        """Look at model and data, before anything is changed; go on with an interrupted run, if it is the same.

        Raises:
            RoundelError: data or files that cannot be read, or an interrupted run that was another one.
        """
        _ = self.original, self.data
        journal = self.destination.journal
        if journal is None:
            return
        with self.ranks.raise_together():
            if self.ranks.first:
                _ = self.companions, self.origin
                journal.begin(self._identity(), self.destination.options.restart)
        with self.ranks.raise_together():
            if not journal.begun_here:
                raise OutputError(
                    f"rank {self.ranks.number} does not see {journal.folder}, where the first rank writes: "
                    "a folder on a file system that all machines share is expected"
                )

    def _identity(self) -> dict[str, Any]:
        """All that decides the integers: an interrupted run goes on only where all of it is the same."""
        recipe = self.recipe.model_dump(mode="json")
        return {
            "recipe": {key: value for key, value in recipe.items() if key not in _NO_MATTER},
            "model": self.original["fingerprint"],
            "calibration": self.data.fingerprint if self.data else None,
            "device": self.device.type,
            "amp": self._amp,
            "threads": torch.get_num_threads(),
            "ranks": self.ranks.size,
            "streams": str(self.home.dtype).removeprefix("torch."),
            "blocks": self.stack.name,
            "versions": versions(),
        }

    def take(self, recipe: Recipe) -> None:
        """Another recipe, before the work begins: the same grids, other samples or iterations."""
        self.recipe = self._reader.recipe = recipe

    def leave_text_unwritten(self) -> None:
        """For a plan: any tokens will do in the place of text that the model would write."""
        self._reader.unwritten = True

    @property
    def writes_text(self) -> bool:
        """Whether the model writes its own calibration text."""
        return self._reader.writes_text

    def job(self, activations: ActivationQuantizer | None = None, *, lockstep: bool = False) -> Job:
        """What the engine is to do; `lockstep`: other jobs are done beside it, block by block."""
        tokens = self.data.tokens if self.data else None
        return self.job_of(self.recipe, tokens, activations, lockstep=lockstep)

    def job_of(
        self,
        recipe: Recipe,
        tokens: torch.Tensor | None,
        activations: ActivationQuantizer | None = None,
        *,
        lockstep: bool = False,
    ) -> Job:
        """The same of a recipe and data that the run may not have yet."""
        return Job(
            model=self.model,
            stack=self.stack,
            coverage=self.coverage,
            recipe=recipe,
            tokens=tokens,
            device=self.device,
            progress=self.progress,
            home=self.home,
            storage=self.source.storage,
            journal=self.destination.journal,
            keeps_weights=not self.streamed,
            activations=activations,
            ranks=self.ranks,
            lockstep=lockstep,
        )

    def count(self, *, lockstep: bool = False) -> Plan:
        """The plan in bytes."""
        destination, in_memory = self.destination, isinstance(self.source.storage, InMemory)
        return make_plan(
            self.model,
            self.stack,
            self.coverage,
            self.recipe,
            self.home,
            target=destination.target,
            # A model that the caller holds is counted in `resident` already.
            whole=in_memory and not self.request.in_memory,
            writes_text=self._reader.writes_text and not in_memory,
            checks_whole=self._checks_whole,
            measures=destination.journal is None or destination.options.held_out is not None,
            resident=self.resident,
            footprint=self._footprint,
            ranks=self.ranks.size,
            processes=self.ranks.here,
            independent=self.job(lockstep=lockstep).independent,
            extra=self.extra.bytes,
            reading=self.data.reading if self.data else 0,
            source=self._source_bytes,
        )

    @property
    def _source_bytes(self) -> int:
        """Of the weight files that are made smaller; dense weights are for comparing, and are never smaller."""
        place = self.source.place
        if place is None or self.source.parents or self.recipe.format == "dense":
            return 0
        return weight_bytes(place.path)

    @cached_property
    def _footprint(self) -> ActivationFootprint:
        return bytes_of_batch(self.job()) if self.data else ActivationFootprint(0, 0)

    def plan(self, trial: bool) -> tuple[Plan, Trial | None]:
        """The plan in bytes, and one block tried."""
        with ExitStack() as undo:
            undo.callback(rejoin, self.model)
            plan = self.count()
            return plan, run_trial(self.job(), plan, self.tried) if trial else None

    def keep_streams_in_files(self) -> None:
        """From now on."""
        self.home = replace(self.home, on_disk=True)
        self.progress.say("The activations between blocks are kept in files: memory does not hold them")

    @contextmanager
    def ready(self, *, lockstep: bool) -> Iterator[Job]:
        """The job, with the model made ready for it; where it fails, nothing stays attached to the model."""
        with marking(None if self.streamed else self.model):
            if self.coverage.head is not None:
                untie_head(self.model, self.coverage.head, self.source.storage, self.stack)
            activations = None
            if self.recipe.activations:
                layers = self.coverage.fed
                activations = ActivationQuantizer(self.model, layers, self.recipe.activations)
            try:
                yield self.job(activations, lockstep=lockstep)
            except BaseException:
                if activations is not None:
                    activations.detach()
                raise

    def finish(self, job: Job, outcome: Outcome, plan: Plan) -> Quantized:
        """Write, check and report.

        Raises:
            RoundelError: a failed check; no output appears then.
        """
        check_complete(outcome.layers, self.model)
        manifest, no_report = self._manifest(outcome, plan), ""
        if job.journal is not None:
            with self.ranks.raise_together():
                if self.ranks.first:
                    no_report = self._write(job, manifest, outcome)
            manifest, no_report = self.ranks.broadcast_object(lambda: [manifest, no_report])
        if job.activations is None or job.activations.inputs is None:
            rejoin(self.model)  # else the hooks on experts stay
        tokenizer, target = self.source.tokenizer, self.destination.target
        if self.streamed:
            return Quantized(None, tokenizer, None, manifest, target, no_report)
        return Quantized(self.model, tokenizer, outcome.weights, manifest, target, no_report)

    def mark(self, manifest: dict[str, Any]) -> None:
        """Say on a model in memory what it is now."""
        if not self.streamed:
            put_mark(self.model, describe_result(manifest))

    def _manifest(self, outcome: Outcome, plan: Plan) -> dict[str, Any]:
        manifest = build_manifest(
            outcome,
            recipe=self.recipe.model_dump(mode="json"),
            source=self.source.name,
            original=self.original,
            calibration=None if self.data is None else self.data.described(),
            device=str(self.device),
            amp=self._amp,
            threads=torch.get_num_threads(),
            ranks=self.ranks.size,
            seconds=time.perf_counter() - self.began,
        )
        if self.readers is not None:
            manifest["opens_in"] = list(self.readers.clients)
        manifest["plan"] = {"peak_bytes": plan.peak, "memory": plan.memory, "disk_bytes": plan.disk}
        return manifest

    def _write(self, job: Job, manifest: dict[str, Any], outcome: Outcome) -> str:
        """Write the folder, and its report; why there is none, if so."""
        destination, options = self.destination, self.request.options
        assert destination.journal is not None
        manifest["origin"] = self.origin.plain()
        content = make_content(
            job, self.source, self.extra, self._files, whole=self._checks_whole, blocks=options.blocks
        )
        write_folder(job, destination, content, self.companions, manifest, options)
        try:
            # Measured when the folder is there: nothing of that costs it.
            held_out, target = destination.options.held_out, destination.journal.target
            request = replace(self.request, tokenizer=self.source.tokenizer)
            return write_report(target, manifest, outcome, request, held_out, self.device)
        except BaseException:  # asked to stop
            destination.journal.remove()
            raise
