"""One run, from what the user gave to the written folder: open, decide, gather text, plan, walk, write, check."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from math import prod
from pathlib import Path
from typing import Any

import psutil
import torch

from roundel.activations.attach import ActivationQuantizer, attached
from roundel.calibration.gather import (
    SELF_WORDS,
    Calibration,
    CalibrationSource,
    for_sources,
    gather_calibration,
)
from roundel.calibration.options import CalibrationOptions
from roundel.engine.coverage import Coverage, check_complete, decide
from roundel.engine.job import Job
from roundel.engine.journal import Journal
from roundel.engine.plan import Plan, make_plan
from roundel.engine.quantize import quantize_model
from roundel.engine.streams import StreamHome, StreamOptions
from roundel.engine.trial import ActivationFootprint, Trial, bytes_of_batch, run_trial
from roundel.errors import CalibrationError, ModelError, OutputError, RoundelError
from roundel.formats import CONTAINERS, Container, Content, Layer, Piece
from roundel.formats.companions import Companions
from roundel.formats.config_file import finish_config
from roundel.formats.folder import atomic_folder
from roundel.formats.readers import Readers
from roundel.formats.reload import check_extra
from roundel.formats.shards import SHARD_BYTES
from roundel.grid.quantized_weight import QuantizedWeight
from roundel.model.beside import left_beside
from roundel.model.blocks import BlockStack, find_blocks
from roundel.model.experts import divide, rejoin
from roundel.model.extra_tensors import ExtraTensors
from roundel.model.linears import LinearView
from roundel.model.mark import marking, put_mark
from roundel.model.place import Place
from roundel.model.source import fingerprint
from roundel.model.storage import InMemory
from roundel.model.stored_types import StoredTypes
from roundel.model.text_path import text_model
from roundel.recipe import Recipe
from roundel.records.folder import measure_folder
from roundel.records.manifest import build_manifest, versions, write_manifest
from roundel.records.outcome import Outcome
from roundel.system.devices import autocast_dtype, keep_freed_memory
from roundel.system.progress import Progress
from roundel.system.ranks import Ranks
from roundel.workflows.open import ModelRequest, mark_words
from roundel.workflows.report import write_report

# Keys of a recipe that decide no integer.
_NO_MATTER = ("name", "description", "format", "extra_tensors")


@dataclass(frozen=True)
class OutputOptions:
    """How a run writes.

    Attributes:
        journal: beside the output folder.
        overwrite: that folder may be replaced.
        restart: an interrupted run is forgotten.
        stream: blocks are never in memory together.
        streams: where the activations between blocks are.
        held_out: text on which the result is measured for the report; None: it is not.
    """

    journal: Journal
    overwrite: bool
    restart: bool
    stream: bool
    streams: StreamOptions
    held_out: str | None = None


@dataclass(frozen=True)
class RunResult:
    """What a run leaves in memory, and why it left no report in the output folder, if so."""

    model: Any
    tokenizer: Any | None
    weights: dict[str, QuantizedWeight]
    manifest: dict[str, Any]
    no_report: str = ""


class Run:
    """Quantizing one model with one recipe.

    Args:
        given: model and data.
        recipe: what to do.
        device: where blocks compute.
        progress: told of the work.
        home: where streams of activations are, and whose shares of them.
        writing: how the result is written; None: it stays in memory.
        stream_with: without writing: a folder for the tensors of a streamed model.
        target: without writing: the folder that would be written.
        lockstep: other runs are done beside this one, block by block.

    Raises:
        RoundelError: bad input, found before the work.
    """

    def __init__(
        self,
        given: ModelRequest,
        recipe: Recipe,
        device: torch.device,
        progress: Progress,
        home: StreamHome,
        writing: OutputOptions | None = None,
        stream_with: Path | None = None,
        target: Path | None = None,
        lockstep: bool = False,
    ) -> None:
        if device.type == "cpu":
            keep_freed_memory()  # before anything is computed
        self.began, self.lockstep = time.perf_counter(), lockstep
        if recipe.needs_calibration:
            recipe = for_sources(recipe, given.calibration)
        self.given, self.recipe, self.device = given, recipe, device
        self.progress, self.home, self.writing, self.ranks = progress, home, writing, home.ranks
        self.target = writing.journal.target if writing else target
        if writing is not None and writing.stream:
            stream_with = writing.journal.converted
        self.streamed = stream_with is not None
        self.resident = psutil.Process().memory_info().rss
        self.source = given.open(stream_with)
        if attached(self.model) is not None:
            raise ModelError(
                f"{self.source.name} is quantized already: the original, unquantized model is wanted"
            )
        if self.source.read_from:
            progress.say(f"The original: {self.source.read_from}")
        self.container = CONTAINERS[recipe.format]
        self.extra = self.source.extra if recipe.extra_tensors else ExtraTensors()
        self.stack, self.coverage = decide_on(
            self.model,
            recipe,
            given.blocks,
            self.container if self.target is not None else None,
            self.source.extra,
        )
        self.readers = None if self.target is None else find_readers(self.coverage, recipe, self.model)
        if self.readers is not None:
            progress.say(self.readers.words)
        if self.source.extra:
            what = "carried over as they are" if self.extra else "left out (extra_tensors=false)"
            kind = type(self.model).__name__
            progress.say(f"{self.source.extra.words} of the checkpoint, without a place in {kind}: {what}")

    @property
    def model(self) -> Any:
        """The model; of streamed blocks it has names and shapes."""
        return self.source.model

    @cached_property
    def data(self) -> Calibration | None:
        """Calibration tokens of all ranks; the first of them reads them."""
        if not self.recipe.needs_calibration:
            return None
        with self.ranks.agreed():
            data = self._read() if self.ranks.first else None
        about = self.ranks.tell(lambda: [data.source, data.fingerprint, data.reading] if data else None)
        tokens = self.ranks.spread({"tokens": data.tokens} if data else None)["tokens"]
        with self.ranks.agreed():
            if len(tokens) < self.ranks.size:
                raise CalibrationError(
                    f"{len(tokens)} samples cannot be shared by {self.ranks.size} ranks: a sample for each is wanted"
                )
        return Calibration(tokens, *about)

    def _read(self) -> Calibration:
        decides = {key: getattr(self.recipe, key) for key in CalibrationOptions.model_fields}
        key = f"calibration {decides}"
        if key not in self.given.known:
            self.given.known[key] = self._read_anew()
        found: Calibration = self.given.known[key]
        return found

    def _read_anew(self) -> Calibration:
        if self.writing is None or not self._writes_text:
            return self._gather(self.given.calibration)
        # Sampling takes minutes to hours: an interrupted run does not do it again.
        recipe = self.recipe
        key = {"model": self.original["fingerprint"], "nsamples": recipe.nsamples, "seqlen": recipe.seqlen}
        key |= {
            "add_bos": recipe.add_bos,
            "seed": recipe.seed,
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }
        kept = self.writing.journal.text(key)
        if kept is not None:
            return replace(self._gather(kept), source=SELF_WORDS)
        data = self._gather(self.given.calibration)
        self.writing.journal.keep_text(key, data.tokens)
        return data

    def _gather(self, source: CalibrationSource | None) -> Calibration:
        author = self.source if isinstance(self.source.storage, InMemory) else None
        return gather_calibration(
            source,
            self.model,
            self.source.tokenizer,
            self.recipe,
            self.progress,
            lambda: (author or self.given.open()).model,
        )

    @property
    def _writes_text(self) -> bool:
        source = self.given.calibration if self.given.calibration is not None else self.recipe.calibration
        return self.recipe.needs_calibration and (
            source is None or (isinstance(source, str) and source == "self")
        )

    @cached_property
    def original(self) -> dict[str, Any]:
        """Figures of the unquantized model, for the manifest."""
        parameters = list(self.model.parameters())
        extra = self.source.extra.shapes.values()
        return {
            # It takes a pass over the whole checkpoint: once is enough.
            "fingerprint": self.ranks.tell(self._fingerprint),
            "bytes": sum(p.numel() * p.element_size() for p in parameters) + self.source.extra.bytes,
            "bits_per_weight": torch.finfo(self.model.dtype).bits,
            "parameters": sum(p.numel() for p in parameters) + sum(map(prod, extra)),
            **({"read_from": self.source.read_from} if self.source.read_from else {}),
            **self.source.parents,
            **({"left_out": words} if (words := self._beside) else {}),
            **({"commit": place.commit} if (place := self.source.place) is not None and place.commit else {}),
        }

    @property
    def _beside(self) -> str:
        """What lies beside the weights and was not taken."""
        return "" if self.source.place is None else left_beside(self.source.place)

    def _fingerprint(self) -> str:
        if "fingerprint" not in self.given.known:
            source = self.source
            self.given.known["fingerprint"] = fingerprint(self.model, source.storage, source.extra)
        found: str = self.given.known["fingerprint"]
        return found

    @cached_property
    def companions(self) -> Companions:
        """What goes along with the weights."""
        in_memory = not isinstance(self.given.model, Place)
        source, trust = self.source, self.given.trust_remote_code
        return Companions.find(source.folders, source.tokenizer, trust, in_memory=in_memory)

    @property
    def _checkpoint(self) -> Path | None:
        """The folder in which the model's weights are stored as it has them; None of one that was made of something."""
        place, source = self.source.place, self.source
        return None if place is None or place.is_gguf or source.read_from or source.parents else place.folder

    @property
    def _checks_whole(self) -> bool:
        return not self.streamed or self.original["bytes"] <= SHARD_BYTES

    @property
    def _amp(self) -> str:
        return str(autocast_dtype(self.device, self.recipe.amp) or torch.float32).removeprefix("torch.")

    def job(self, activations: ActivationQuantizer | None = None) -> Job:
        """What the engine is to do."""
        return Job(
            model=self.model,
            stack=self.stack,
            coverage=self.coverage,
            recipe=self.recipe,
            tokens=self.data.tokens if self.data else None,
            device=self.device,
            progress=self.progress,
            home=self.home,
            storage=self.source.storage,
            journal=self.writing.journal if self.writing else None,
            keep=not self.streamed,
            activations=activations,
            ranks=self.ranks,
            lockstep=self.lockstep,
        )

    def count(self) -> Plan:
        """The plan in bytes."""
        return make_plan(
            self.model,
            self.stack,
            self.coverage,
            self.recipe,
            self.home,
            target=self.target,
            # A model that the caller holds is counted in `resident` already.
            whole=isinstance(self.source.storage, InMemory)
            and not isinstance(self.given.model, torch.nn.Module),
            writes_text=self._writes_text and not isinstance(self.source.storage, InMemory),
            checks_whole=self._checks_whole,
            measures=self.writing is None or self.writing.held_out is not None,
            resident=self.resident,
            of_sample=self._kept.sample,
            of_batch=self._kept.once,
            ranks=self.ranks.size,
            processes=self.ranks.here,
            independent=self.job().independent,
            extra=self.extra.bytes,
            reading=self.data.reading if self.data else 0,
        )

    @cached_property
    def _kept(self) -> ActivationFootprint:
        return bytes_of_batch(self.job()) if self.data else ActivationFootprint(0, 0)

    def plan(self, trial: bool) -> tuple[Plan, Trial | None]:
        """The plan in bytes, and one block tried."""
        with ExitStack() as undo:
            undo.callback(rejoin, self.model)
            if trial and isinstance(self.given.model, torch.nn.Module):
                # A trial leaves the block quantized that it is made with: here, one of the caller's.
                undo.callback(self.source.storage.saved(self.stack.blocks[0], self.stack.block_name(0)))
            plan = self.count()
            return plan, run_trial(self.job(), plan) if trial else None

    def quantize(self) -> RunResult:
        """Do it.

        Raises:
            RoundelError: a failed check; no output appears then.
        """
        try:
            self.begin()
            plan = self.count()
            if self.prefers_files(plan):
                self.keep_streams_in_files()
                plan = self.count()
            tell_plan(plan, self.progress, self.ranks)
            whole = None if self.streamed else self.model
            with marking(whole):
                with self.ready() as job:
                    outcome = quantize_model(job)
                done = self.finish(job, outcome, plan)
            if whole is not None:
                put_mark(whole, mark_words(done.manifest))
            return done
        except BaseException:
            rejoin(self.model)  # which may be the caller's
            raise

    @contextmanager
    def ready(self) -> Iterator[Job]:
        """The job, with the model made ready for it; where it fails, nothing stays attached to the model."""
        if self.coverage.head is not None:
            self._untie(self.coverage.head)
        activations = None
        if self.recipe.activations:
            layers = list(self.coverage.schemes)
            activations = ActivationQuantizer(self.model, layers, self.recipe.activations)
        try:
            yield self.job(activations)
        except BaseException:
            if activations is not None:
                activations.detach()
            raise

    def finish(self, job: Job, outcome: Outcome, plan: Plan) -> RunResult:
        """Write, check and report.

        Raises:
            RoundelError: a failed check; no output appears then.
        """
        check_complete(outcome.layers, self.model)
        manifest, no_report = self._manifest(outcome, plan), ""
        if self.writing is not None:
            with self.ranks.agreed():
                if self.ranks.first:
                    self._write(self.writing, job, manifest)
                    no_report = self._report(self.writing, manifest, outcome)
            manifest, no_report = self.ranks.tell(lambda: [manifest, no_report])
        if job.activations is None or job.activations.inputs is None:
            rejoin(self.model)  # else the hooks on experts stay
        return RunResult(self.model, self.source.tokenizer, outcome.weights, manifest, no_report)

    def begin(self) -> None:
        """Look at model and data, before anything is changed; go on with an interrupted run, if it is the same."""
        _ = self.original, self.data
        writing = self.writing
        if writing is None:
            return
        with self.ranks.agreed():
            if self.ranks.first:
                _ = self.companions
        recipe = self.recipe.model_dump(mode="json")
        identity = {
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
        with self.ranks.agreed():
            if self.ranks.first:
                writing.journal.begin(identity, writing.restart)
        with self.ranks.agreed():
            if not writing.journal.begun_here:
                raise OutputError(
                    f"rank {self.ranks.number} does not see {writing.journal.folder}, where the first rank writes: "
                    "a folder on a file system that all machines share is wanted"
                )

    def _untie(self, head: LinearView) -> None:
        """Give a head that shares the embedding's weight a weight of its own."""
        if head.parameter is not text_model(self.model).get_input_embeddings().weight:
            return
        with self.source.storage.around(self.model, self.stack):
            weight = head.parameter.detach().clone()
            for config in {
                id(c): c for c in (self.model.config, self.model.config.get_text_config())
            }.values():
                config.tie_word_embeddings = False
            head.module.weight = torch.nn.Parameter(weight, requires_grad=False)
            self.source.storage.untied(f"{head.name}.weight")

    def prefers_files(self, plan: Plan) -> bool:
        """Whether streams belong into files: the choice is left to the plan, and memory does not hold them."""
        undecided = self.writing is not None and self.writing.streams.on_disk is None
        found: bool = self.ranks.tell(lambda: undecided and not plan.fits and plan.fits_without_streams)
        return found

    def keep_streams_in_files(self) -> None:
        """From now on."""
        self.home = replace(self.home, on_disk=True)
        self.progress.say("The activations between blocks are kept in files: memory does not hold them")

    def _manifest(self, outcome: Outcome, plan: Plan) -> dict[str, Any]:
        manifest = build_manifest(
            outcome,
            recipe=self.recipe.model_dump(mode="json"),
            source=self.source.name,
            original=self.original,
            calibration=_describe(self.data),
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

    def _write(self, writing: OutputOptions, job: Job, manifest: dict[str, Any]) -> None:
        """Write the output folder from the journal, check it, and let it appear."""
        journal = writing.journal
        content = Content(
            model=self.model,
            schemes=self.coverage.schemes,
            read_pieces=lambda: chain(journal.pieces(), [self._outside()]),
            activations=job.activations,
            whole=self._checks_whole,
            blocks=self.given.blocks,
            extra=self.extra,
            types=StoredTypes(self.model, self._checkpoint),
        )
        with (
            self.progress.stage("Writing and checking", 1),
            atomic_folder(journal.target, writing.overwrite, journal.folder, self.progress.say) as folder,
        ):
            self.container.write(folder, content)
            if job.activations is not None:
                job.activations.save(folder)
            sources = self.companions.sources
            trust = self.given.trust_remote_code
            finish_config(folder, sources[0] if sources else None, self.model.config, trust)
            self.companions.write(folder)
            self.container.verify(folder, content, trust)
            check_extra(folder, content.extra)
            manifest |= measure_folder(folder, self.original["parameters"])
            write_manifest(folder, manifest)
            journal.seal()

    def _report(self, writing: OutputOptions, manifest: dict[str, Any], outcome: Outcome) -> str:
        """Measure what was written; nothing of that costs the folder."""
        journal, given = writing.journal, self.given
        try:
            return write_report(
                journal.target, manifest, outcome, given, writing.held_out, self.device, self.progress
            )
        except BaseException:  # asked to stop
            journal.remove()
            raise

    def _outside(self) -> Piece:
        """What is in no block, and not the quantized head."""
        head = self.coverage.head
        with self.source.storage.around(self.model, self.stack):
            state = self.model.state_dict().items()
            others = {
                name: t.detach().cpu().contiguous()
                for name, t in state
                if not self.stack.holds(name) and not (head and name.startswith(f"{head.name}."))
            }
        return Piece(others=others)


def decide_on(
    model: Any,
    recipe: Recipe,
    blocks: str | None,
    container: Container | None,
    extra: ExtraTensors,
) -> tuple[BlockStack, Coverage]:
    """Find what there is to quantize in a model, and decide what becomes of it.

    Args:
        model: names, classes and shapes are looked at; tensors may be absent. Its stacked experts stay divided, if they
            are to be quantized.
        recipe: what to do.
        blocks: pattern of the decoder blocks' names; None: they are found.
        container: that is to carry the result; None: none.
        extra: tensors of the checkpoint for which the model has no place.

    Raises:
        RoundelError: the blocks are not found, the recipe does not fit the model, or the container not the recipe.
    """
    divide(model)
    try:
        stack = find_blocks(model, blocks)
        coverage = decide(model, stack, recipe, extra.shapes)
        if container is not None:
            container.check(_layers(coverage, recipe, model), model, recipe.activations)
    except RoundelError:
        rejoin(model)
        raise
    rejoin(model, keep={name.rpartition(".")[0] for name in coverage.schemes})
    return stack, coverage


def find_readers(coverage: Coverage, recipe: Recipe, model: Any) -> Readers:
    """Which clients will open a result that its container has not refused."""
    layers = _layers(coverage, recipe, model)
    return CONTAINERS[recipe.format].readers(layers, model, recipe.activations)


def tell_plan(plan: Plan, progress: Progress, ranks: Ranks) -> None:
    """The plan in a line, and what to do where it will not fit.

    Raises:
        OutputError: the disk is too small.
    """
    progress.say(plan.words)
    with ranks.agreed():
        if plan.free_disk is not None and plan.disk > plan.free_disk:
            raise OutputError(plan.disk_words)
    for advice in plan.advice:
        progress.say(advice)


def stream_device(recipe: Recipe, device: torch.device) -> torch.device:
    """Where streams in memory are."""
    return torch.device("cpu") if recipe.low_gpu_mem_usage else device


def _layers(coverage: Coverage, recipe: Recipe, model: Any) -> list[Layer]:
    layers = []
    for record in coverage.layers:
        scheme = coverage.schemes.get(record.name)
        if scheme is None:
            continue
        shape = (record.shape[0], record.shape[1])
        bias = getattr(model.get_submodule(record.name), "bias", None) is not None
        permuted = recipe.permutes(scheme, shape[1])
        layers.append(Layer(record.name, record.kind, shape, scheme, bias, recipe.keeps_outliers, permuted))
    return layers


def _describe(data: Calibration | None) -> dict[str, Any] | None:
    if data is None:
        return None
    samples, length = data.tokens.shape
    return {
        "source": data.source,
        "samples": samples,
        "tokens_per_sample": length,
        "fingerprint": data.fingerprint,
    }
