"""What the optimizers do to the weights while a model trains, and pictures of it.

`ProjectionLog` needs Transformers and `plot_runs` needs matplotlib; each is imported when used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_adamp.diagnostics.callback import ProjectionLog
    from hf_adamp.diagnostics.plots import plot_runs

__all__ = ["ProjectionLog", "plot_runs"]

_HOME = {
    "ProjectionLog": "hf_adamp.diagnostics.callback",
    "plot_runs": "hf_adamp.diagnostics.plots",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value
