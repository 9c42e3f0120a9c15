"""What a log says of a step: numbers by name for the trackers, and a file with a line a weight."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from hf_adamp.diagnostics.steps import Read, Row, summarize

__all__ = ["Report", "unwrap"]

_OTHER = "other"  # the kind of a weight that no module of the model holds


class Report:
    """Names the weights of a model, groups their numbers, and writes both down.

    Args:
        jsonl: the file that gets a line a weight, or None.
        per_kind: whether the numbers of each kind of module are among those that are returned.
        weights: a regular expression; weights whose names it is found in are among them, too.

    Raises:
        ValueError: `weights` is no regular expression.
    """

    def __init__(self, jsonl: str | Path | None, *, per_kind: bool, weights: str | None) -> None:
        self.jsonl = None if jsonl is None else Path(jsonl)
        self._per_kind = per_kind
        try:
            self._wanted = None if weights is None else re.compile(weights)
        except re.error as error:
            raise ValueError(
                f"weights={weights!r} must be a regular expression ({error}); to find a name as "
                "it is, pass re.escape(name)."
            ) from None
        self._names: dict[int, str] = {}
        self._kinds: dict[int, str] = {}

    def describe(self, model: nn.Module) -> None:
        """Learn the name of each weight and the class of the module that holds it."""
        while isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        self._names = {id(p): n.replace("_orig_mod.", "") for n, p in model.named_parameters()}
        self._kinds = {
            id(p): type(module).__name__
            for module in model.modules()
            for p in module.parameters(recurse=False)
        }

    def start(self, *, resumed: bool) -> None:
        """Make room for the file; a run from its beginning replaces it."""
        if self.jsonl is not None:
            self.jsonl.parent.mkdir(parents=True, exist_ok=True)
            if not resumed:
                self.jsonl.write_text("")

    def numbers(self, read: Read) -> dict[str, float]:
        """The whole model's numbers, then those of kinds and weights, as in `weight_norm/Conv2d`.

        Returns:
            Nothing where no weight has any.
        """
        groups: dict[str, list[Row]] = {}
        for weight, row in read:
            groups.setdefault(self._kind(weight), []).append(row)
        if not self._per_kind or len(groups) < 2:
            groups = {}
        for index, (weight, row) in enumerate(read):
            name = self._name(weight, index)
            if self._wanted is not None and self._wanted.search(name):
                groups[name] = [row]
        added = summarize([row for _, row in read])
        for group, rows in groups.items():
            added |= {f"{name}/{group}": value for name, value in summarize(rows).items()}
        return added

    def write(self, when: Mapping[str, Any], beside: Mapping[str, Any], read: Read) -> None:
        """Append a line for the whole model, with the numbers `beside` it, and one a weight."""
        if self.jsonl is None:
            return
        overall = summarize([row for _, row in read])
        lines: list[dict[str, Any]] = [{**when, "weight": None, **beside, **overall}]
        for index, (weight, row) in enumerate(read):
            names = {"weight": self._name(weight, index), "kind": self._kind(weight)}
            lines.append({**when, **names, **row})
        with self.jsonl.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(_finite(line)) + "\n" for line in lines)

    def _name(self, weight: Tensor, index: int) -> str:
        return self._names.get(id(weight), f"weight {index}")

    def _kind(self, weight: Tensor) -> str:
        return self._kinds.get(id(weight), _OTHER)


def unwrap(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer inside Accelerate's wrapper, or any other that has an `optimizer`."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def _finite(line: Mapping[str, Any]) -> dict[str, Any]:
    """Write what is not a number as null: JSON knows no NaN."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in line.items()
    }
