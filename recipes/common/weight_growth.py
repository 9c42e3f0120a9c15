"""How much a run's weights grew, and how far its steps turned them.

    growth = measure_growth(read_run("run/projection.jsonl", weights=CONVOLUTIONS))

The file is written by `ProjectionLog(jsonl=...)` in a Trainer, and by
`hf_adamp.diagnostics.StepLog(optimizer, model, every=10, jsonl=...)` in a loop of one's own, for
any optimizer. Log the first step, too (`logging_first_step`, or `every=1`), or growth counts from
the first log on.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["measure_growth"]


def measure_growth(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Sum up the rows of `hf_adamp.diagnostics.plots.read_run`, one a logged step.

    Returns:
        first_norm, last_norm: the weights' norm as one vector, before the first and last logged
            step; growth: their ratio; effective_step: the mean of |Δw|/|w| over the logged steps.
            The last step's alone would only show that the learning rate has come down to zero.
    """
    first, last = rows[0]["weight_norm"], rows[-1]["weight_norm"]
    return {
        "first_norm": first,
        "last_norm": last,
        "growth": last / first,
        "effective_step": statistics.fmean(row["effective_step"] for row in rows),
    }
