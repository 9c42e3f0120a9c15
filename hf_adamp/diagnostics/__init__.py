"""Finds scale-invariant weights, logs what the optimizers do to them, and plots both.

`probe` finds the weights before training, `ProjectionLog` follows them during it. `ProjectionLog`
and `inspect_model` need Transformers and `plot_runs` needs matplotlib; each is imported when used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_adamp.diagnostics.callback import ProjectionLog
    from hf_adamp.diagnostics.loop import StepLog
    from hf_adamp.diagnostics.models import inspect_model
    from hf_adamp.diagnostics.plots import plot_runs

__all__ = ["ProjectionLog", "StepLog", "inspect_model", "plot_runs"]

_HOME = {
    "ProjectionLog": "hf_adamp.diagnostics.callback",
    "StepLog": "hf_adamp.diagnostics.loop",
    "inspect_model": "hf_adamp.diagnostics.models",
    "plot_runs": "hf_adamp.diagnostics.plots",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value
