"""What the probe found: one entry a weight, to read, to save, and to group parameters by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

__all__ = ["Granularity", "ProbeReport", "WeightReport"]

Granularity = str | tuple[str, int] | None

_FORMAT = 1


@dataclass(frozen=True)
class WeightReport:
    """One weight of two dimensions or more.

    Attributes:
        name: Its name in `model.named_parameters()`.
        module: The class of its module.
        shape: Its shape; a row is what lies behind one index of the first dimension.
        groups: The largest number of equal groups of consecutive rows that can each be scaled by a
            factor of its own without changing the output. None: scaling changes it.
        change: Relative change of the output when the groups (without groups: all rows together)
            are scaled by 0.5, 1 and 2, with the eps of the model's norms in place.
        effect: Relative change of the output, to first order, by a random change of the weight as
            large as the weight; 0 where the weight has no influence on this output.
        cosine: The largest `|g·w|/(|g||w|)` over the groups (without groups: of the whole weight)
            and over the gradients drawn. None without effect.
        channel: Share of the gradients on which AdamP's test chooses the channel view (rows).
        layer: Share on which it chooses the layer view (the weight as one vector).
        with_bias: The groups if the module's bias is scaled too, where that finds finer ones.
        partial: A number of groups and the share of them that can be scaled, where it is some but
            not all, as in a fused query-key-value weight.
        like: The weight that was probed in its stead: same module, same shape, another layer.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    groups: int | None
    change: float
    effect: float
    cosine: float | None
    channel: float
    layer: float
    with_bias: int | None = None
    partial: tuple[int, float] | None = None
    like: str | None = None

    @property
    def granularity(self) -> Granularity:
        """None, "row", "tensor" or ("head", number of groups)."""
        return granularity_of(self.groups, self.shape[0])

    @property
    def numel(self) -> int:
        """Number of elements."""
        size = 1
        for extent in self.shape:
            size *= extent
        return size

    @property
    def caught(self) -> float | None:
        """Share of gradients on which the test chose the right view; None without groups.

        The views know rows and whole weights only: for heads the layer view is the closest that is
        right, because what is invariant by head is invariant as a whole.
        """
        if self.groups is None:
            return None
        return self.channel if self.granularity == "row" else self.layer

    @property
    def misfires(self) -> float:
        """Share of gradients on which the test chose a view that is not invariant."""
        if self.groups is None:
            return self.channel + self.layer
        return 0.0 if self.granularity == "row" else self.channel


def granularity_of(groups: int | None, rows: int) -> Granularity:
    """Name a number of groups of rows."""
    if groups is None:
        return None
    if groups == 1:
        return "tensor"
    return "row" if groups == rows else ("head", groups)


@dataclass(frozen=True)
class ProbeReport:
    """The result of `probe`; print it for a table, or hand it on.

    Attributes:
        model: The class of the model.
        weights: An entry for each weight, by name, in the model's order.
        gradients: Number of gradients behind `cosine`, `channel` and `layer`.
        delta: AdamP's delta in its test.
        seconds: What the probe took.
        notes: What was left out or made up, a sentence each.
    """

    model: str
    weights: Mapping[str, WeightReport]
    gradients: int
    delta: float
    seconds: float
    notes: tuple[str, ...] = field(default=())

    @property
    def granularities(self) -> dict[str, Granularity]:
        """For each weight None, "row", "tensor" or ("head", n): n equal groups of rows."""
        return {name: weight.granularity for name, weight in self.weights.items()}

    @property
    def summary(self) -> str:
        """One sentence: whether AdamP is worth trying on this model."""
        from hf_adamp.diagnostics.probe.table import summary  # noqa: PLC0415

        return summary(self)

    def __str__(self) -> str:
        from hf_adamp.diagnostics.probe.table import text  # noqa: PLC0415

        return text(self)

    def plot(self, output: str | Path) -> Path:
        """Draw which part of the model is invariant, and at which granularity.

        Args:
            output: The picture to write; its ending chooses the format (`.png`, `.pdf`, `.svg`).

        Returns:
            The path of the picture.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        from hf_adamp.diagnostics.probe.picture import draw  # noqa: PLC0415

        return draw(self, Path(output))

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return the report as JSON; `from_json` reads it back."""
        content = asdict(self) | {
            "format": _FORMAT,
            "weights": [
                asdict(weight) | {"granularity": weight.granularity}
                for weight in self.weights.values()
            ],
        }
        return json.dumps(content, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> ProbeReport:
        """Read a report that `to_json` wrote.

        Raises:
            ValueError: The text is not such a report.
        """
        try:
            content = json.loads(text)
            version = content.pop("format")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(
                "The text is not a probe's report; write one with ProbeReport.to_json or "
                "`python -m hf_adamp inspect MODEL --json`."
            ) from error
        if version != _FORMAT:
            raise ValueError(
                f"The report has format {version!r}, this version reads {_FORMAT}; probe again."
            )
        weights = [_weight(entry) for entry in content.pop("weights")]
        content["notes"] = tuple(content["notes"])
        return cls(weights={weight.name: weight for weight in weights}, **content)


def _weight(entry: dict[str, Any]) -> WeightReport:
    names = {f.name for f in fields(WeightReport)}
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in entry.items() if k in names
    }
    return WeightReport(**values)
