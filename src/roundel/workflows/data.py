"""The calibration tokens of a run: read by the first rank, known to all; a model's own text outlives the process."""

from dataclasses import replace
from typing import Any

import torch

from roundel.calibration.gather import SELF_WRITTEN, Calibration, CalibrationSource, gather_calibration
from roundel.engine.journal import Journal
from roundel.errors import CalibrationError
from roundel.model.source import SourceModel
from roundel.model.storage import InMemory
from roundel.recipe import Recipe
from roundel.records.manifest import versions
from roundel.system.ranks import Ranks
from roundel.workflows.common import Common
from roundel.workflows.request import ModelRequest


class CalibrationReader:
    """Reads what a recipe is calibrated on.

    Args:
        request: the model, and data of the caller's.
        recipe: which data, if any.
        source: the model as it was opened for the run.
        journal: keeps text that the model writes itself; None: nothing outlives the process.
        common: what other runs on the model found out.
        ranks: that share the samples.

    Attributes:
        unwritten: of text that the model would write itself any ids will do, for a plan.
    """

    def __init__(
        self,
        request: ModelRequest,
        recipe: Recipe,
        source: SourceModel,
        journal: Journal | None,
        common: Common,
        ranks: Ranks,
    ) -> None:
        self.request, self.recipe, self.source = request, recipe, source
        self.journal, self.common, self.ranks = journal, common, ranks
        self.unwritten = False

    def read(self) -> Calibration | None:
        """Tokens of all ranks; None for a recipe that reads none.

        Raises:
            CalibrationError: the data cannot be read, or do not suffice for all ranks.
        """
        if not self.recipe.needs_calibration:
            return None
        with self.ranks.raise_together():
            data = self.common.calibration(self.recipe, self._read) if self.ranks.first else None
        about = self.ranks.broadcast_object(
            lambda: [data.source, data.fingerprint, data.reading] if data else None
        )
        tokens = self.ranks.broadcast({"tokens": data.tokens} if data else None)["tokens"]
        with self.ranks.raise_together():
            if len(tokens) < self.ranks.size:
                raise CalibrationError(
                    f"{len(tokens)} samples cannot be shared by {self.ranks.size} ranks: a sample for each is expected"
                )
        return Calibration(tokens, *about)

    @property
    def writes_text(self) -> bool:
        """Whether the model writes its own calibration text."""
        source = self.request.calibration if self.request.calibration is not None else self.recipe.calibration
        return self.recipe.needs_calibration and (
            source is None or (isinstance(source, str) and source == "self")
        )

    def _read(self) -> Calibration:
        if self.journal is None or not self.writes_text:
            return self._gather(self.request.calibration)
        # Sampling takes minutes to hours: an interrupted run does not do it again.
        key = self._identity()
        kept = self.journal.text(key)
        if kept is not None:
            return replace(self._gather(kept), source=SELF_WRITTEN)
        data = self._gather(self.request.calibration)
        self.journal.save_text(key, data.tokens)
        return data

    def _identity(self) -> dict[str, Any]:
        """All that decides what the model writes."""
        recipe = self.recipe
        return {
            "model": self.common.fingerprint(self.source),
            "nsamples": recipe.nsamples,
            "seqlen": recipe.seqlen,
            "add_bos": recipe.add_bos,
            "seed": recipe.seed,
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }

    def _gather(self, source: CalibrationSource | None) -> Calibration:
        author = self.source if isinstance(self.source.storage, InMemory) else None
        return gather_calibration(
            source,
            self.source.model,
            self.source.tokenizer,
            self.recipe,
            self.request.options.listener,
            lambda: (author or self.request.open()).model,
            unwritten=self.unwritten,
        )
