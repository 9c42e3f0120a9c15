"""Good and bad keyword arguments of the optimizers, and the paths that compute a step."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any

import adamp
import numpy
import pytest
import torch

from hf_adamp import SGDP, AdamP
from hf_adamp.optim.backends.cpu import library
from tests.references import ReferenceAdamP, ReferenceSGDP


@dataclass(frozen=True, eq=False)
class Family:
    """An optimizer with what it is compared with."""

    name: str
    cls: type
    reference: type
    published: type  # of adamp 0.3.0
    base: dict[str, Any]  # a learning rate that moves weights visibly and amplifies no round-off
    moments: tuple[str, ...]


ADAMP = Family("AdamP", AdamP, ReferenceAdamP, adamp.AdamP, {"lr": 1e-2}, ("exp_avg", "exp_avg_sq"))
SGDP_ = Family("SGDP", SGDP, ReferenceSGDP, adamp.SGDP, {"lr": 0.01}, ("momentum",))
FAMILIES = [ADAMP, SGDP_]


@dataclass(frozen=True, eq=False)
class Good:
    """Keyword arguments that the optimizer takes, with a word on what they exercise."""

    name: str
    kwargs: dict[str, Any]
    description: str


@dataclass(frozen=True, eq=False)
class Bad:
    """Keyword arguments that the constructor refuses, and how."""

    kwargs: dict[str, Any]
    error: type[Exception]
    match: str


GOOD = {
    "AdamP": [
        Good("defaults", {}, "the defaults"),
        Good("weight-decay", {"weight_decay": 0.3}, "decay, less where projected"),
        Good("betas", {"betas": (0.5, 0.9)}, "short memory"),
        Good("no-memory", {"betas": (0.0, 0.0)}, "no running averages at all"),
        Good("eps", {"eps": 1e-3}, "an eps that shows in norms and denominators"),
        Good("nesterov", {"nesterov": True}, "look ahead"),
        Good("delta-zero", {"delta": 0.0, "weight_decay": 0.1}, "nothing projects"),
        Good("delta-large", {"delta": 1e3, "weight_decay": 0.1}, "everything projects"),
        Good("wd-ratio-0", {"weight_decay": 0.3, "wd_ratio": 0.0}, "no decay where projected"),
        Good("wd-ratio-1", {"weight_decay": 0.3, "wd_ratio": 1.0}, "the same decay everywhere"),
        Good("maximize", {"maximize": True, "weight_decay": 0.1}, "ascent"),
        Good(
            "all",
            {
                "betas": (0.8, 0.95),
                "eps": 1e-6,
                "weight_decay": 0.2,
                "delta": 0.3,
                "wd_ratio": 0.5,
                "nesterov": True,
                "maximize": True,
            },
            "all options together",
        ),
    ],
    "SGDP": [
        Good("defaults", {}, "no momentum"),
        Good("momentum", {"momentum": 0.9}, "momentum"),
        Good("dampening", {"dampening": 0.4}, "dampening without momentum"),
        Good("momentum-dampening", {"momentum": 0.8, "dampening": 0.4}, "dampened momentum"),
        Good("weight-decay", {"weight_decay": 0.05}, "decay without momentum"),
        Good("momentum-decay", {"momentum": 0.9, "weight_decay": 0.01}, "decay over 1 − momentum"),
        Good("nesterov", {"momentum": 0.9, "nesterov": True}, "look ahead"),
        Good(
            "nesterov-dampening",
            {"momentum": 0.8, "nesterov": True, "dampening": 0.3, "weight_decay": 0.01},
            "look ahead with a dampened buffer",
        ),
        Good("eps", {"momentum": 0.9, "eps": 1e-2}, "an eps that shows in the norms"),
        Good("delta-zero", {"delta": 0.0, "momentum": 0.9, "weight_decay": 0.01}, "plain SGD"),
        Good("delta-large", {"delta": 1e3, "momentum": 0.5}, "everything projects"),
        Good("wd-ratio-0", {"weight_decay": 0.05, "wd_ratio": 0.0}, "no decay where projected"),
        Good("maximize", {"maximize": True, "momentum": 0.9, "weight_decay": 0.01}, "ascent"),
        Good(
            "all",
            {
                "momentum": 0.7,
                "dampening": 0.2,
                "weight_decay": 0.03,
                "nesterov": True,
                "eps": 1e-6,
                "delta": 0.3,
                "wd_ratio": 0.5,
                "maximize": True,
            },
            "all options together",
        ),
    ],
}

_BAD_IN_BOTH = [
    Bad({"lr": -0.1}, ValueError, r"lr=-0\.1 must be at least 0"),
    Bad({"lr": float("nan")}, ValueError, r"lr=nan must"),
    Bad({"lr": float("inf")}, ValueError, r"lr=inf must"),
    Bad({"lr": "0.1"}, TypeError, r"lr='0\.1' must be a number, not str"),
    Bad({"lr": True}, TypeError, r"lr=True must be a number, not bool"),
    Bad({"lr": None}, TypeError, r"lr=None must be a number"),
    Bad({"lr": torch.tensor([0.1, 0.2])}, ValueError, r"lr has 2 elements"),
    Bad({"lr": torch.tensor(-0.1)}, ValueError, r"lr=-0\.1.* must be at least 0"),
    Bad({"lr": torch.tensor(True)}, TypeError, r"lr is a tensor of torch\.bool"),
    Bad({"lr": torch.tensor(1j)}, TypeError, r"lr is a tensor of torch\.complex64"),
    Bad({"lr": 1j}, TypeError, r"lr=1j must be a number, not complex"),
    Bad({"lr": 10**400}, ValueError, r"lr=1000.* must be at least 0 and finite"),
    Bad({"lr": numpy.array([0.1, 0.2])}, ValueError, r"lr has 2 elements; it must have one"),
    Bad({"lr": numpy.float32(-0.5)}, ValueError, r"lr=.*-0\.5.* must be at least 0"),
    Bad({"lr": numpy.bool_(True)}, TypeError, r"lr=.* must be a number, not bool"),
    Bad({"eps": -1e-8}, ValueError, r"eps=-1e-08 must be at least 0"),
    Bad({"eps": torch.tensor([])}, ValueError, r"eps has 0 elements"),
    Bad({"eps": torch.empty((), device="meta")}, TypeError, r"eps=.* must be a number that can"),
    Bad({"delta": torch.ones((), requires_grad=True)}, TypeError, r"delta is .* detach\(\)"),
    Bad({"weight_decay": -0.1}, ValueError, r"weight_decay=-0\.1 must be at least 0"),
    Bad({"delta": -0.1}, ValueError, r"delta=-0\.1 must be at least 0"),
    Bad({"delta": float("nan")}, ValueError, r"delta=nan must"),
    Bad({"wd_ratio": -0.1}, ValueError, r"wd_ratio=-0\.1 must"),
    Bad({"wd_ratio": 1.5}, ValueError, r"wd_ratio=1\.5 must be in \[0, 1\]"),
    Bad({"nesterov": 1}, TypeError, r"nesterov=1 must be True or False"),
    Bad({"nesterov": "maybe"}, TypeError, r"nesterov='maybe' must be True or False"),
    Bad({"nesterov": "none"}, TypeError, r"nesterov='none' must be True or False"),
    Bad({"maximize": None}, TypeError, r"maximize=None must be True or False"),
    Bad({"foreach": "yes"}, TypeError, r"foreach='yes' must be True, False or None"),
    Bad({"fused": 0}, TypeError, r"fused=0 must be True, False or None"),
    Bad({"capturable": None}, TypeError, r"capturable=None must be True or False"),
    Bad(
        {"scale_invariant": "rows"}, ValueError, r"scale_invariant='rows' must be \"auto\", \"row\""
    ),
    Bad({"scale_invariant": "head"}, ValueError, r"scale_invariant='head' must be"),
    Bad({"scale_invariant": ("head",)}, ValueError, r"scale_invariant=\('head',\) must be"),
    Bad(
        {"scale_invariant": ("rows", 2)}, ValueError, r"must be .*\(\"head_dim\", rows of a head\)"
    ),
    Bad({"scale_invariant": ("head", 0)}, ValueError, r"must have at least 1 as its second"),
    Bad({"scale_invariant": ("head", 2.0)}, TypeError, r"must have an integer as its second"),
    Bad({"scale_invariant": ("head", True)}, TypeError, r"must have an integer as its second"),
    Bad({"scale_invariant": {"head", 2}}, TypeError, r"scale_invariant=.* must be"),
    Bad({"scale_invariant": ("rows", ())}, ValueError, r"scale_invariant=\('rows', \(\)\) must be"),
    Bad({"scale_invariant": ("rows", (2, 0))}, ValueError, r"must have at least 1 as its second"),
    Bad({"scale_invariant": ("rows", (-2, -1))}, ValueError, r"no invariant group of rows; use F"),
    Bad({"scale_invariant": "rows:4 2"}, ValueError, r"must be \"auto\""),
    Bad({"scale_invariant": ("rows", (2, 1.5))}, TypeError, r"must have integers in its second"),
    Bad({"scale_invariant": ("experts", "in")}, ValueError, r"scale_invariant=.* must be"),
    Bad({"scale_invariant": "experts:out"}, ValueError, r"scale_invariant='experts:out' must be"),
    Bad({"scale_invariant": "heads:8"}, ValueError, r"scale_invariant='heads:8' must be"),
    Bad({"rounding": 3}, ValueError, r"rounding=3 must be \"nearest\""),
    Bad({"state_dtype": False}, ValueError, r"state_dtype=False must be None"),
    Bad({"scale_invariant": True}, TypeError, r"scale_invariant=True must be .* or False"),
    Bad({"scale_invariant": None}, TypeError, r"scale_invariant=None must be"),
    Bad({"scale_invariant": 0}, TypeError, r"scale_invariant=0 must be"),
    Bad({"foreach": True, "fused": True}, RuntimeError, r"fused=True and foreach=True exclude"),
    Bad({"fused": True, "differentiable": True}, RuntimeError, r"fused=True is not diff"),
    Bad({"foreach": True, "differentiable": True}, RuntimeError, r"foreach=True is not diff"),
]


class Listing(Sequence):
    """What omegaconf's ListConfig is: a sequence that is neither a list nor a tuple."""

    def __init__(self, *values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return self.values[index]


class Word(str, Enum):
    """A word as a member of an enumeration, as configuration libraries keep it."""

    NEAREST = "nearest"


@dataclass(frozen=True, eq=False)
class Converted:
    """A value of another type than the option's own, and what the optimizer keeps of it."""

    kwargs: dict[str, Any]
    kept: Any


_CONVERTED_IN_BOTH = [
    Converted({"lr": 1}, 1.0),
    Converted({"lr": Fraction(1, 4)}, 0.25),
    Converted({"lr": Decimal("0.5")}, 0.5),
    Converted({"lr": numpy.float32(0.25)}, 0.25),
    Converted({"lr": numpy.float64(0.1)}, 0.1),
    Converted({"lr": numpy.array(0.1)}, 0.1),
    Converted({"lr": numpy.array([0.1])}, 0.1),
    Converted({"weight_decay": numpy.int64(0)}, 0.0),
    Converted({"weight_decay": torch.tensor(0.5)}, 0.5),
    Converted({"weight_decay": torch.tensor([0.25], dtype=torch.bfloat16)}, 0.25),
    Converted({"eps": torch.nn.Parameter(torch.tensor(0.5), requires_grad=False)}, 0.5),
    Converted({"delta": numpy.float16(0.5)}, 0.5),
    Converted({"wd_ratio": numpy.array([[0.5]])}, 0.5),
    Converted({"maximize": numpy.bool_(True)}, True),
    Converted({"maximize": torch.tensor(False)}, False),
    Converted({"maximize": "true"}, True),
    Converted({"capturable": "False"}, False),
    Converted({"fused": "none"}, None),
    Converted({"foreach": " TRUE "}, True),
    Converted({"rounding": Word.NEAREST}, "nearest"),
    Converted({"state_dtype": "None"}, None),
    Converted({"scale_invariant": "false"}, False),
    Converted({"scale_invariant": "Row"}, "row"),
    Converted({"scale_invariant": "head: 3"}, ("head", 3)),
    Converted({"scale_invariant": ["head_dim", 2]}, ("head_dim", 2)),
    Converted({"scale_invariant": Listing("head", numpy.int32(2))}, ("head", 2)),
    Converted({"scale_invariant": ["rows", [4, numpy.int64(2)]]}, ("rows", (4, 2))),
    Converted({"scale_invariant": "rows:4 + 2"}, ("rows", (4, 2))),
    Converted({"scale_invariant": "rows:4-2"}, ("rows", (4, -2))),
    Converted({"scale_invariant": ["rows", [numpy.int64(-4), 2]]}, ("rows", (-4, 2))),
    Converted({"scale_invariant": Listing("rows", Listing(6))}, ("rows", (6,))),
]

CONVERTED = {
    "AdamP": [
        *_CONVERTED_IN_BOTH,
        Converted({"betas": [0.5, 0.75]}, (0.5, 0.75)),
        Converted({"betas": Listing(0.5, 0.75)}, (0.5, 0.75)),
        Converted({"betas": (0, numpy.float32(0.75))}, (0.0, 0.75)),
        Converted({"betas": numpy.array([0.5, 0.75])}, (0.5, 0.75)),
        Converted({"betas": torch.tensor([0.5, 0.75])}, (0.5, 0.75)),
    ],
    "SGDP": [
        *_CONVERTED_IN_BOTH,
        Converted({"momentum": numpy.float32(0.5)}, 0.5),
        Converted({"momentum": torch.tensor(0.5)}, 0.5),
        Converted({"dampening": numpy.array(0.5)}, 0.5),
    ],
}

BAD = {
    "AdamP": [
        *_BAD_IN_BOTH,
        Bad({"betas": (1.0, 0.999)}, ValueError, r"betas\[0\]=1\.0 must be in \[0, 1\)"),
        Bad({"betas": (0.9, -0.1)}, ValueError, r"betas\[1\]=-0\.1 must be in \[0, 1\)"),
        Bad({"betas": (0.9, float("nan"))}, ValueError, r"betas\[1\]=nan must"),
        Bad({"betas": (0.9,)}, TypeError, r"betas=\(0\.9,\) must be a pair"),
        Bad({"betas": {0.9: 1, 0.99: 1}}, TypeError, r"betas=.* must be a pair"),
        Bad({"betas": iter((0.9, 0.99))}, TypeError, r"betas=.* must be a pair"),
        Bad({"betas": "12"}, TypeError, r"betas='12' must be a pair"),
        Bad({"betas": torch.tensor([0.9, 1.0])}, ValueError, r"betas\[1\]=1\.0 must be in"),
        Bad({"betas": 0.9}, TypeError, r"betas=0\.9 must be a pair"),
        Bad({"betas": ("0.9", 0.99)}, TypeError, r"betas\[0\]='0\.9' must be a number"),
        Bad({"betas": (0.9, torch.tensor(0.99))}, ValueError, r"two floats or two tensors"),
        Bad(
            {"lr": torch.tensor(0.1), "foreach": True}, ValueError, r"lr as a tensor .* capturable"
        ),
        Bad(
            {"betas": (torch.tensor(0.9), torch.tensor(0.99)), "foreach": True},
            ValueError,
            r"betas\[0\] as a tensor .* capturable",
        ),
    ],
    "SGDP": [
        *_BAD_IN_BOTH,
        Bad({"momentum": -0.1}, ValueError, r"momentum=-0\.1 must be in \[0, 1\)"),
        Bad({"momentum": 1.0}, ValueError, r"momentum=1\.0 must be in \[0, 1\)"),
        Bad({"dampening": 1.5}, ValueError, r"dampening=1\.5 must be in \[0, 1\]"),
        Bad({"nesterov": True}, ValueError, r"nesterov=True needs momentum"),
    ],
}


DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Path:
    """A way to compute a step: the flags that choose it, and what it refuses.

    Attributes:
        flags: keyword arguments of the optimizer.
        fused: whether it is a kernel of ours.
        device: where its weights live.
        dense_only: whether it refuses weights, gradients and state that are not dense and alike.
        dtypes: the dtypes of weights that it takes.
    """

    name: str
    flags: dict[str, Any]
    fused: bool = False
    device: str = "cpu"
    dense_only: bool = False
    dtypes: tuple[torch.dtype, ...] = DTYPES


# A new backend joins every comparison by one entry.
PATHS = [
    Path("default", {}),
    Path("foreach", {"foreach": True}),
    Path("single_tensor", {"foreach": False}),
    Path(
        "native",
        {"fused": True},
        fused=True,
        dense_only=True,
        dtypes=(torch.float32, *HALVES),
    ),
    Path("cuda", {}, device="cuda"),
    Path("cuda_foreach", {"foreach": True}, device="cuda"),
    Path("cuda_capturable", {"foreach": True, "capturable": True}, device="cuda"),
    Path(
        "cuda_triton",
        {"fused": True},
        fused=True,
        device="cuda",
        dense_only=True,
        dtypes=(torch.float32, *HALVES),
    ),
]


def _missing(path):
    """What this machine lacks for the path, or an empty string."""
    if path.device == "cuda" and not torch.cuda.is_available():
        return "needs CUDA"
    if path.fused and path.device == "cpu" and library.load()[0] is None:
        return f"the native kernel {library.load()[1]}"
    return ""


def _param(path, *values, name, dtype=None):
    missing = _missing(path)
    marks = [pytest.mark.skipif(bool(missing), reason=missing)] if missing else []
    values = (*values, path) if dtype is None else (*values, path, dtype)
    return pytest.param(*values, id=f"{name}{path.name}", marks=marks)


def families_and_paths(where=lambda family, path: True):
    """Every optimizer with every path, as pytest parameters `(family, path)`."""
    return [
        _param(path, family, name=f"{family.name}-")
        for family in FAMILIES
        for path in PATHS
        if where(family, path)
    ]


def families_paths_and_dtypes(dtypes):
    """Every optimizer with every path and each of the dtypes that it takes."""
    return [
        pytest.param(*param.values, dtype, id=f"{param.id}-{dtype}", marks=param.marks)
        for param in families_and_paths()
        for dtype in dtypes
        if dtype in param.values[1].dtypes
    ]


def cases(family, dtypes=(torch.float32,)):
    """Good options with the paths that take them, as parameters `(good, path, dtype)`."""
    return [
        _param(path, good, name=f"{good.name}-{dtype}-", dtype=dtype)
        for good in GOOD[family.name]
        for path in PATHS
        for dtype in dtypes
        if dtype in path.dtypes
    ]
