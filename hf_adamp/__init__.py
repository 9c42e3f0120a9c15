"""AdamP and SGDP (Heo et al., ICLR 2021, arXiv 2006.08217) for Hugging Face Transformers.

Names load on first use: torch imports this package while torch itself is half loaded (see
``hf_adamp._autoload``), and the optimizers need neither Transformers nor its import time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_adamp._version import __version__

if TYPE_CHECKING:
    from hf_adamp.diagnostics import ProjectionLog
    from hf_adamp.diagnostics.probe import ProbeReport, probe
    from hf_adamp.integration.factory import create_optimizer
    from hf_adamp.integration.registration import register
    from hf_adamp.integration.trainer import AdamPMixin, AdamPTrainer
    from hf_adamp.optim.adamp import AdamP, adamp
    from hf_adamp.optim.sgdp import SGDP, sgdp
    from hf_adamp.param_groups import get_param_groups

__all__ = [
    "SGDP",
    "AdamP",
    "AdamPMixin",
    "AdamPTrainer",
    "ProbeReport",
    "ProjectionLog",
    "__version__",
    "adamp",
    "create_optimizer",
    "get_param_groups",
    "probe",
    "register",
    "sgdp",
]

_HOME = {
    "AdamP": "hf_adamp.optim.adamp",
    "AdamPMixin": "hf_adamp.integration.trainer",
    "AdamPTrainer": "hf_adamp.integration.trainer",
    "ProbeReport": "hf_adamp.diagnostics.probe",
    "ProjectionLog": "hf_adamp.diagnostics",
    "SGDP": "hf_adamp.optim.sgdp",
    "adamp": "hf_adamp.optim.adamp",
    "create_optimizer": "hf_adamp.integration.factory",
    "get_param_groups": "hf_adamp.param_groups",
    "probe": "hf_adamp.diagnostics.probe",
    "register": "hf_adamp.integration.registration",
    "sgdp": "hf_adamp.optim.sgdp",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
