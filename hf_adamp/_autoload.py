"""Make ``--optim adamp`` known as soon as a program imports Transformers.

torch calls `activate` at the end of ``import torch`` (entry-point group ``torch.backends``), in
every program of an environment where this package is installed. It imports nothing but the hook and
fails silently: it only asks to be told when two modules of Transformers have finished loading.
``TORCH_DEVICE_BACKEND_AUTOLOAD=0`` switches torch's mechanism off.
"""

import logging

from hf_adamp.integration.import_hook import when_imported

__all__ = ["activate"]


def _add_names_quietly() -> None:
    try:
        from hf_adamp.integration.registration import add_names  # noqa: PLC0415  after torch

        add_names()
    except Exception:
        _log_failure()


def _add_dispatch_quietly() -> None:
    try:
        from hf_adamp.integration.registration import add_dispatch  # noqa: PLC0415  after torch

        add_dispatch()
    except Exception:
        _log_failure()


def _log_failure() -> None:
    # The program may have nothing to do with us: hf_adamp.register() is what fails loudly.
    logging.getLogger("hf_adamp").debug("automatic registration failed", exc_info=True)


def activate() -> None:
    """Register with Transformers when, and only if, this program imports it. Never raises."""
    try:
        when_imported("transformers.training_args", _add_names_quietly)
        when_imported("transformers.trainer", _add_dispatch_quietly)
    except Exception:
        _log_failure()
