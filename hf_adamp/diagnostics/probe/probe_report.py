"""The result of a probe: an entry per weight, to print, save, or group weights by."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hf_adamp.diagnostics.probe.picture import draw
from hf_adamp.diagnostics.probe.table import legend, summary, table, wrapped
from hf_adamp.diagnostics.probe.weights import Granularity, WeightReport

__all__ = ["ProbeReport"]

_FORMAT = 1


@dataclass(frozen=True)
class ProbeReport:
    """The result of `probe`. Print it for a table, or pass it to `get_param_groups`.

    Attributes:
        model: The class of the model.
        weights: An entry per weight, by name, in the model's order.
        gradients: Number of gradients that `cosine`, `channel` and `layer` are based on.
        delta: AdamP's delta in its test.
        seconds: Time that the probe took.
        notes: What was left out or generated, one sentence each.
        certain: Whether all values in the model were large enough to be measured.
    """

    model: str
    weights: Mapping[str, WeightReport]
    gradients: int
    delta: float
    seconds: float
    notes: tuple[str, ...] = field(default=())
    certain: bool = True

    @property
    def granularities(self) -> dict[str, Granularity]:
        """The granularity of each weight: None or a value of `scale_invariant`, by name."""
        return {name: weight.granularity for name, weight in self.weights.items()}

    @property
    def summary(self) -> str:
        """One sentence: whether AdamP is worth trying on this model."""
        found = summary(self.weights.values())
        is_told = self.certain or not any(weight.effect for weight in self.weights.values())
        return found if is_told else f"it cannot be told for certain, but {found}"

    def __str__(self) -> str:
        return self.to_text(shutil.get_terminal_size().columns)

    def to_text(self, width: int | None = None) -> str:
        """The table and the summary; `print(report)` fits them to the terminal.

        Args:
            width: Columns to fit into. None, the default, gives each family of weights one line of
                any length.
        """
        drawn = f"{self.gradients} gradients, delta {self.delta:g}"
        test = f"AdamP's test: over {drawn}; probed in {self.seconds:.1f} s"
        texts = [f"{self.model}: {self.summary}", test, *self.notes]
        first, test, *notes = (wrapped(text, width) for text in texts)
        parts = [first, table(self.weights.values(), width), f"{legend(width)}\n{test}", *notes]
        return "\n\n".join(parts)

    def plot(self, output: str | Path) -> Path:
        """Draw which part of the model is invariant, and at which granularity.

        Args:
            output: The file to write; its extension selects the format (`.png`, `.pdf`, `.svg`).

        Returns:
            The path of the file.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        title = f"{self.model}: {self.summary}"
        return draw(self.weights.values(), title, self.gradients, Path(output))

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
            ValueError: The text is not a probe's report.
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
