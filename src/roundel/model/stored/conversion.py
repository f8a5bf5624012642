"""The tensors of a checkpoint under the names and in the shapes that a model's class has for them.

transformers loads checkpoints by rules: names are changed, experts that lie apart are stacked. Its own rules are asked
here for one tensor of the model at a time, so that a weight is decoded, and its experts are joined, when its block is
loaded, and no dense copy of the model is ever made.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)


class Converted(Mapping[str, torch.Tensor]):
    """A checkpoint's tensors as a model has them.

    Args:
        model: its names, shapes and types; the rules that were of use are kept with it, as transformers does, so that
            it is saved by them.
        checkpoint: the tensors by the checkpoint's names.
    """

    def __init__(self, model: Any, checkpoint: Mapping[str, torch.Tensor]) -> None:
        self._model, self._checkpoint = model, checkpoint
        rules = get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
        self._known = model.state_dict()
        prefix = model.base_model_prefix
        # Of the first tensor that a rule makes: the rule, and (pattern, name) of what it is made of.
        self._made: dict[str, tuple[WeightConverter | None, list[tuple[str, str]]]] = {}
        self._first: dict[str, str] = {}
        for name in sorted(checkpoint, key=dot_natural_key):
            target, pattern = rename_source_key(name, renamings, converters, prefix, self._known)
            if target not in self._known and name in self._known:
                target, pattern = rename_source_key(name, [], [], prefix, self._known)
            if target not in self._known:
                continue
            rule = by_pattern[pattern] if pattern is not None else None
            self._made.setdefault(target, (rule, []))[1].append((pattern or name, name))
            others = rule.target_patterns[1:] if rule is not None else []
            for made in (target, *(target.replace(rule.target_patterns[0], other) for other in others)):  # type: ignore[union-attr]
                self._first[made] = target
        model._weight_conversions = [rule for rule in rules if rule.was_used()]
        self._kept: tuple[str, dict[str, torch.Tensor]] | None = None

    def __getitem__(self, name: str) -> torch.Tensor:
        first = self._first[name]
        rule, parts = self._made[first]
        made = {name: self._checkpoint[parts[0][1]]} if rule is None else self._convert(first, rule, parts)
        return made[name].to(self._known[name].dtype)

    def _convert(
        self, first: str, rule: WeightConverter, parts: list[tuple[str, str]]
    ) -> dict[str, torch.Tensor]:
        if self._kept is not None and self._kept[0] == first:
            return self._kept[1]
        own = deepcopy(rule)
        for pattern, name in parts:
            own.add_tensor(first, name, pattern, self._checkpoint[name])
        made = own.convert(first, model=self._model, config=self._model.config)
        tensors = {name: t[0] if isinstance(t, list) else t for name, t in made.items()}
        # What one rule makes several tensors of (a fused query, key and value) is needed by all of them in turn.
        self._kept = (first, tensors) if len(tensors) > 1 else None
        return tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._first)

    def __len__(self) -> int:
        return len(self._first)
