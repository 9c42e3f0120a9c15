"""What a step did to each weight: `|w|`, the effective step `|Δw|/|w|`, and how it was projected.

AdamP and SGDP have computed these numbers when a step ends (`StepRecord`), so they are only read.
Any other optimizer is measured from a copy of its weights, on the steps that ask for it. Reading
waits for the device once, whatever the number of weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from hf_adamp.optim.layout import has_rows
from hf_adamp.optim.projection import View
from hf_adamp.optim.records import StepRecord

__all__ = ["Read", "RecordedSteps", "Row", "SnapshotSteps", "StepReader", "summarize", "watch"]

Row = dict[str, float | str]
Read = list[tuple[Tensor, Row]]

_VIEWS = {
    "not_projected": View.NONE,
    "projected_channel": View.CHANNEL,
    "projected_layer": View.LAYER,
    "projected_head": View.HEAD,
}
_SHARES = (*_VIEWS, "radial_share")


class StepReader(Protocol):
    """How a callback follows an optimizer, whichever it is."""

    optimizer: Optimizer

    def before_step(self, *, wanted: bool) -> None:
        """Prepare for a step; `wanted` says whether it will be read."""

    def after_step(self) -> None:
        """Take what the step left behind, without waiting for the device."""

    def read(self) -> Read:
        """Return each weight with its numbers as of the last step, waiting for the device."""

    def close(self) -> None:
        """Leave the optimizer as it was found."""


def watch(optimizer: Optimizer) -> StepReader:
    """Choose the reader for an optimizer: recorded steps where it offers them, else snapshots."""
    return (
        RecordedSteps(optimizer) if hasattr(optimizer, "record_steps") else SnapshotSteps(optimizer)
    )


class RecordedSteps:
    """Reads the `StepRecord` of an AdamP or SGDP, and counts on the device which views fired."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._was_recording = optimizer.record_steps  # type: ignore[attr-defined]
        self._fired: dict[tuple[int, ...], Tensor] = {}
        self._steps: dict[tuple[int, ...], int] = {}
        optimizer.record_steps = True  # type: ignore[attr-defined]

    def before_step(self, *, wanted: bool) -> None:
        """Every step is recorded, wanted or not: the shares count all of them."""

    def after_step(self) -> None:
        """Add the views of this step to the counts."""
        for section in self._sections():
            key = tuple(map(id, section.params))
            fired = torch.stack([section.view == view for view in _VIEWS.values()])
            counted = self._fired.get(key)
            self._fired[key] = fired.int() if counted is None else counted + fired
            self._steps[key] = self._steps.get(key, 0) + 1

    def read(self) -> Read:
        """Return the last step's numbers, and the views' shares of the steps since a read."""
        rows = [pair for section in self._sections() for pair in self._read_section(section)]
        self._fired.clear()
        self._steps.clear()
        return rows

    def _read_section(self, section: StepRecord) -> Iterable[tuple[Tensor, Row]]:
        key = tuple(map(id, section.params))
        columns = {
            "view": section.view,
            **dict(zip(_VIEWS, self._fired[key] / self._steps[key], strict=True)),
            "max_cosine": section.max_cosine,
            "channel_margin": section.channel_margin,
            "layer_margin": section.layer_margin,
            "weight_norm": section.weight_norm,
            "update_norm": section.update_norm,
            "effective_step": section.update_norm / section.weight_norm,
            "radial_share": section.radial_share,
        }
        # One copy for all columns, so one wait.
        table = torch.stack([column.float() for column in columns.values()]).T.tolist()
        for weight, values in zip(section.params, table, strict=True):
            row: Row = dict(zip(columns, values, strict=True))
            row["view"] = View(int(values[0])).name.lower()
            yield weight, row

    def close(self) -> None:
        """Stop recording, unless the optimizer recorded before."""
        self.optimizer.record_steps = self._was_recording  # type: ignore[attr-defined]

    def _sections(self) -> Sequence[StepRecord]:
        return self.optimizer.last_step  # type: ignore[attr-defined, no-any-return]


class SnapshotSteps:
    """Measures any optimizer from a copy of its weights before the step."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._before: list[tuple[Tensor, Tensor]] = []
        self._measured: tuple[list[Tensor], Tensor] | None = None

    def before_step(self, *, wanted: bool) -> None:
        """Copy the weights that the step will change, where it will be read."""
        if wanted:
            weights = (p for group in self.optimizer.param_groups for p in group["params"])
            self._before = [
                (p, p.detach().clone()) for p in weights if p.grad is not None and has_rows(p.shape)
            ]

    def after_step(self) -> None:
        """Hold the weights against their copies, and drop these."""
        if self._before:
            # Before the copies go: they are as large as the model.
            norms = [(_norm(old), _norm(p.detach() - old)) for p, old in self._before]
            devices = {norm.device for pair in norms for norm in pair}
            home = devices.pop()
            table = torch.stack([torch.stack(pair).to(home) for pair in norms])
            self._measured = ([p for p, _ in self._before], table)
            self._before = []

    def read(self) -> Read:
        """Return the norms of the last measured step; nothing where it was not wanted."""
        if self._measured is None:
            return []
        weights, table = self._measured
        self._measured = None
        return [
            (
                weight,
                {
                    "weight_norm": norm,
                    "update_norm": update,
                    "effective_step": update / norm if norm else math.nan,
                },
            )
            for weight, (norm, update) in zip(weights, table.tolist(), strict=True)
        ]

    def close(self) -> None:
        """Drop the copies."""
        self._before, self._measured = [], None


def summarize(rows: Sequence[Row]) -> dict[str, float]:
    """Put the numbers of several weights into one of each kind.

    Norms are those of all the weights as one vector, and so is the effective step. Shares are the
    mean over the weights; that of heads is left out where none is declared. The channel view's
    margin is the largest: below delta, the view holds for all of them. Weights without a number
    (zero, NaN) do not count.
    """
    known = [row for row in rows if math.isfinite(row["effective_step"])]  # type: ignore[arg-type]
    if not known:
        return {}
    norm, update = (
        math.hypot(*(float(row[name]) for row in known)) for name in ("weight_norm", "update_norm")
    )
    summary = {"weight_norm": norm, "update_norm": update, "effective_step": update / norm}
    if "channel_margin" in known[0]:
        summary["channel_margin"] = max(float(row["channel_margin"]) for row in known)
    for share in _SHARES:
        if share in known[0]:
            summary[share] = math.fsum(float(row[share]) for row in known) / len(known)
    if not summary.get("projected_head", 1.0):
        del summary["projected_head"]
    return summary


def _norm(tensor: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
    # A sharded weight's norm is put together on every rank, so every rank has to come by here.
    full: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return full
