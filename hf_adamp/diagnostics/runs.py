"""Reads logs of `ProjectionLog` and `StepLog`: from their file, Trainer state or TensorBoard."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from hf_adamp.diagnostics.steps import Row, summarize

__all__ = ["read_run"]

_STATE = "trainer_state.json"
_EVENTS = "events.out.tfevents*"
# A run logs other names with a slash, too; these are ours.
_OURS = re.compile(
    r"(?:train/)?(loss|weight_norm|update_norm|effective_step|channel_margin|radial_share"
    r"|not_projected|projected_\w+)(?:/(.+))?"
)

Line = dict[str, Any]


def read_run(path: str | Path, weights: str | None = None) -> list[Line]:
    """Return a run's numbers in the order of its steps, one dictionary per logged step.

    Args:
        path: a `ProjectionLog` or `StepLog` file, a `trainer_state.json`, a TensorBoard event file,
            or a folder, such as a run's output folder. A folder is searched for them in this order.
        weights: a regular expression; only weights whose names match are read. If the run logged
            only kinds of modules, it selects kinds. Default: all.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: there is no log of ours, or no weight matches.
        ModuleNotFoundError: TensorBoard is needed for an event file and not installed.
    """
    source = _find(Path(path))
    lines = [line for line in _read(source) if "effective_step" in line]
    overall = [line for line in lines if line["weight"] is None]
    if not overall:
        raise ValueError(
            f"{source} has no line for the whole model; train with ProjectionLog(jsonl=...) for "
            "at least logging_steps steps first."
        )
    return overall if weights is None else _select(lines, overall, weights, source)


def _find(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a run's folder or its log.")
    if path.is_file():
        return path
    for file in (path / "projection.jsonl", *sorted(path.glob("*.jsonl"))):
        if file.is_file() and any(True for _ in _read_jsonl(file)):
            return file
    states = [path / _STATE, *sorted(path.glob(f"checkpoint-*/{_STATE}"), key=_checkpoint)]
    for state in [*states[:1], *reversed(states[1:])]:
        if state.is_file():
            return state
    # A Trainer writes to runs/DATE_HOST, Accelerate to the project's name.
    events = [file for above in ("", "*/", "*/*/") for file in path.glob(above + _EVENTS)]
    if not events:
        raise ValueError(
            f"{path} has no log: no *.jsonl of ProjectionLog, no {_STATE}, no {_EVENTS}; train "
            "with callbacks=[ProjectionLog()] first."
        )
    return max(events, key=lambda file: file.stat().st_mtime)


def _checkpoint(state: Path) -> int:
    number = state.parent.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _read(source: Path) -> Iterable[Line]:
    if source.name == _STATE or source.suffix == ".json":
        history = json.loads(source.read_text(encoding="utf-8")).get("log_history", [])
        return [line for entry in history for line in _split(entry["step"], entry)]
    if "tfevents" in source.name:
        return _read_events(source)
    return _read_jsonl(source)


def _read_jsonl(source: Path) -> Iterator[Line]:
    with source.open(encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            if "step" not in line or "weight" not in line:
                return  # some other file of JSON lines
            yield {key: math.nan if value is None else value for key, value in line.items()} | {
                "weight": line["weight"]
            }


def _read_events(source: Path) -> Iterator[Line]:
    try:
        module = import_module("tensorboard.backend.event_processing.event_accumulator")
    except ImportError as error:
        raise ModuleNotFoundError(
            f"reading {source} needs TensorBoard, which is not installed: pip install tensorboard"
        ) from error
    events = module.EventAccumulator(str(source), size_guidance={"scalars": 0}).Reload()
    steps: dict[int, Line] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            steps.setdefault(event.step, {})[tag] = event.value
    for step in sorted(steps):
        yield from _split(step, steps[step])


def _split(step: int, entry: Line) -> Iterator[Line]:
    """Turn `weight_norm` and `weight_norm/Conv2d` of one step into one line each."""
    groups: dict[str | None, Line] = {}
    for key, value in entry.items():
        if ours := _OURS.fullmatch(key):
            groups.setdefault(ours[2], {})[ours[1]] = value
    for group, line in groups.items():
        yield {"step": step, "weight": group, **line}


def _select(lines: list[Line], overall: list[Line], weights: str, source: Path) -> list[Line]:
    """Combine the lines of the matching weights into one per step."""
    names = sorted({line["weight"] for line in lines if line["weight"] is not None})
    kinds = [name for name in names if "." not in name]
    meant = {name for name in names if re.search(weights, name)}
    meant = meant - set(kinds) or meant
    if not meant:
        raise ValueError(
            f"weights={weights!r} matches no weight or kind in {source}; it has "
            f"{', '.join(names[:6]) or 'none'}{', ...' if len(names) > 6 else ''}."
        )
    rows: dict[int, list[Row]] = {}
    for line in lines:
        if line["weight"] in meant:
            rows.setdefault(line["step"], []).append(line)
    return [
        {"step": line["step"], "weight": None, "loss": line.get("loss", math.nan), **summary}
        for line in overall
        if (summary := summarize(rows.get(line["step"], [])))
    ]
