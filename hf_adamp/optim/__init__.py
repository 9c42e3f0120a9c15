"""The optimizers: AdamP, SGDP and the three-stage step under them. Knows torch only."""

from .adamp import AdamP, adamp
from .records import StepRecord
from .sgdp import SGDP, sgdp

__all__ = ["SGDP", "AdamP", "StepRecord", "adamp", "sgdp"]
