"""What a run will need of memory and disk, and what to do where there is less."""

from dataclasses import dataclass, replace
from enum import StrEnum

from roundel.calibration.options import CalibrationOptions
from roundel.formatting import size
from roundel.recipe import Recipe


class PlanPart(StrEnum):
    """What is in main memory at the same time while blocks are quantized."""

    ITSELF = "the process itself"
    AROUND = "weights around the blocks"
    BLOCKS = "all blocks"
    BLOCK = "one block in float32"
    STREAMS = "streams of activations"
    BATCH = "activations of one batch"
    HALVES = "weights in half precision"
    FREED = "freed and kept"
    CODES = "codes"
    BEFORE = "weights before"
    COMPENSATED = "compensated weights"
    HESSIANS = "Hessians"
    PARAMETERS = "parameters and optimizer"
    GRADIENTS = "gradients"
    DIVISORS = "divisors"
    LINEAR = "one Linear being rounded"
    GAPS = "gaps between experts"


@dataclass(frozen=True)
class Plan:
    """Bytes that a run needs.

    Attributes:
        memory: what is in main memory at the same time while blocks are quantized, part by part.
        output: of the folder that will be written.
        parameters: of the model; shared ones count once.
        source: of the weight files that the model came from; 0: it came from none.
        disk: of everything on the output's disk at the same time.
        free_memory, free_disk: at the moment.
        samples: of the calibration data.
        sampling: peak while the model writes its own calibration text; 0 where it does not.
        reading: peak while calibration text is read and tokenized; 0 where none is.
        outside: peak while the head or the embedding is rounded; 0 where neither is.
        checking: peak while the output is written, read back and measured.
        stream: bytes of one stream, a process's share of it.
        processes: that need as much memory each; the first of them alone samples, reads and checks.
    """

    memory: dict[PlanPart, int]
    output: int
    disk: int
    free_memory: int
    free_disk: int | None
    samples: int
    sampling: int = 0
    reading: int = 0
    outside: int = 0
    checking: int = 0
    processes: int = 1
    stream: int = 0
    parameters: int = 0
    source: int = 0

    @property
    def peak(self) -> int:
        """Of main memory, of all processes together."""
        return max(self._coming, self.reading)

    @property
    def _coming(self) -> int:
        """The same without what was read before anything could be counted."""
        together = self.processes * max(sum(self.memory.values()), self.outside)
        return max(together, self.sampling, self.checking)

    @property
    def summary(self) -> str:
        """The plan in a line."""
        disk = "" if self.free_disk is None else f"; {size(self.disk)} on disk ({size(self.free_disk)} free)"
        whose = f" for {self.processes} processes" if self.processes > 1 else ""
        output = ""
        if self.parameters:
            bits = 8 * self.output / self.parameters
            output = f"{bits:.2f} bits per parameter of the whole ({size(self.output)}); "
        return f"Plan: {output}about {size(self.peak)} of memory{whose} ({size(self.free_memory)} free){disk}"

    @property
    def disk_shortage(self) -> str:
        """What is said where the disk is too small."""
        return (
            f"the run needs {size(self.disk)} on the disk of its output (the output twice, and what resuming takes) "
            f"and {size(self.free_disk or 0)} are free: make room, or choose another disk"
        )

    @property
    def _room(self) -> int:
        return self.free_memory + self.processes * self.memory.get(PlanPart.ITSELF, 0)

    @property
    def fits(self) -> bool:
        """Whether memory suffices at the moment."""
        return self._coming <= self._room

    @property
    def fits_without_streams(self) -> bool:
        """Whether it would with the streams in files."""
        return self._coming - self._streams <= self._room

    @property
    def _streams(self) -> int:
        return self.processes * self.memory.get(PlanPart.STREAMS, 0)

    @property
    def advice(self) -> list[str]:
        """What to do where memory will not suffice, or where nothing becomes smaller."""
        larger = [self._larger] if 0 < self.source < self.output else []
        return larger if self.fits else [*larger, self._memory_advice]

    @property
    def _larger(self) -> str:
        return (
            f"The output will be larger than what it is made of ({size(self.output)}, from {size(self.source)}): what "
            "is not quantized has 16 bits or more; embedding_bits=8 and head_bits=8 quantize embedding and head, "
            "--format gguf keeps what a GGUF file has"
        )

    @property
    def _memory_advice(self) -> str:
        room, streams = self._room, self._streams
        ways = []
        if streams and self.fits_without_streams:
            fitting = int(self.samples * (room - (self._coming - streams)) / streams)
            ways += ["--stream-to-disk float32", f"--nsamples {max(1, fitting)}"]
        if self.processes * self.memory.get(PlanPart.BATCH, 0) > self._coming // 5:
            ways.append("--low-memory")
        if self.sampling > room:
            ways.append("--calibration FILE (to write its own text the model has to be in memory whole)")
        found = f"{self.samples} samples need" if self.samples else "The run needs"
        way = " or ".join(ways) or "a machine with more memory"
        return f"{found} {size(self._coming)} of memory and {size(room)} are free: use {way}"


def plan_together(plans: list[Plan], recipes: list[Recipe]) -> Plan:
    """The plan of several recipes that are done block by block in lockstep.

    Weights that stay are there once for each recipe, and so are streams of quantized blocks; a block's own work is that
    of one recipe at a time. Streams of the unquantized model count once for recipes with equal calibration options.
    """
    memory = dict(max(plans, key=lambda plan: sum(plan.memory.values())).memory)
    for part in (PlanPart.AROUND, PlanPart.BLOCKS, PlanPart.STREAMS):
        memory[part] = sum(plan.memory.get(part, 0) for plan in plans)
    if memory[PlanPart.STREAMS]:
        memory[PlanPart.STREAMS] = _streams_in_lockstep(plans, recipes)
    return replace(
        plans[0],
        memory={part: count for part, count in memory.items() if count},
        output=sum(plan.output for plan in plans),
        parameters=sum(plan.parameters for plan in plans),
        source=0,
        disk=sum(plan.disk for plan in plans),
        samples=max(plan.samples for plan in plans),
        sampling=max(plan.sampling for plan in plans),
        reading=max(plan.reading for plan in plans),
        outside=max(plan.outside for plan in plans),
        checking=max(plan.checking for plan in plans),
    )


def _streams_in_lockstep(plans: list[Plan], recipes: list[Recipe]) -> int:
    """Between blocks: an original stream for each kind of data, a quantized one for each recipe; inside, outputs."""
    between: dict[object, int] = {}
    inside = 0
    for number, (plan, recipe) in enumerate(zip(plans, recipes, strict=True)):
        original, quantized = recipe.needs_original_stream, recipe.needs_quantized_stream
        if original:
            data = tuple(getattr(recipe, key) for key in CalibrationOptions.model_fields)
            between[data] = plan.stream
        if quantized:
            between[number] = plan.stream
        inside = max(inside, (original + quantized) * plan.stream)
    return sum(between.values()) + inside
