"""Good and bad keyword arguments of the optimizers, and the paths that compute a step."""

from dataclasses import dataclass, field
from typing import Any

import adamp
import pytest
import torch

from hf_adamp import SGDP, AdamP
from hf_adamp.optim.backends import native
from hf_adamp.optim.bucket import Bucket, SGDRule
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
    Bad({"eps": -1e-8}, ValueError, r"eps=-1e-08 must be at least 0"),
    Bad({"weight_decay": -0.1}, ValueError, r"weight_decay=-0\.1 must be at least 0"),
    Bad({"weight_decay": torch.tensor(0.1)}, TypeError, r"weight_decay=.* number, not Tensor"),
    Bad({"delta": -0.1}, ValueError, r"delta=-0\.1 must be at least 0"),
    Bad({"delta": float("nan")}, ValueError, r"delta=nan must"),
    Bad({"delta": torch.tensor(0.1)}, TypeError, r"delta=.* number, not Tensor"),
    Bad({"eps": torch.tensor(0.1)}, TypeError, r"eps=.* number, not Tensor"),
    Bad({"wd_ratio": torch.tensor(0.1)}, TypeError, r"wd_ratio=.* number, not Tensor"),
    Bad({"wd_ratio": -0.1}, ValueError, r"wd_ratio=-0\.1 must"),
    Bad({"wd_ratio": 1.5}, ValueError, r"wd_ratio=1\.5 must be in \[0, 1\]"),
    Bad({"nesterov": 1}, TypeError, r"nesterov=1 must be True or False"),
    Bad({"nesterov": "False"}, TypeError, r"nesterov='False' must be True or False"),
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
    Bad({"scale_invariant": True}, TypeError, r"scale_invariant=True must be .* or False"),
    Bad({"scale_invariant": None}, TypeError, r"scale_invariant=None must be"),
    Bad({"scale_invariant": 0}, TypeError, r"scale_invariant=0 must be"),
    Bad({"foreach": True, "fused": True}, RuntimeError, r"fused=True and foreach=True exclude"),
    Bad({"fused": True, "differentiable": True}, RuntimeError, r"fused=True is not diff"),
    Bad({"foreach": True, "differentiable": True}, RuntimeError, r"foreach=True is not diff"),
]

BAD = {
    "AdamP": [
        *_BAD_IN_BOTH,
        Bad({"betas": (1.0, 0.999)}, ValueError, r"betas\[0\]=1\.0 must be in \[0, 1\)"),
        Bad({"betas": (0.9, -0.1)}, ValueError, r"betas\[1\]=-0\.1 must be in \[0, 1\)"),
        Bad({"betas": (0.9, float("nan"))}, ValueError, r"betas\[1\]=nan must"),
        Bad({"betas": (0.9,)}, TypeError, r"betas=\(0\.9,\) must be a pair"),
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
        Bad(
            {"momentum": torch.tensor(0.9)}, TypeError, r"momentum=.* must be a number, not Tensor"
        ),
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
        fused: the module of `hf_adamp.optim.backends` that `fused` is pinned to, or None.
        device: where its weights live.
        dense_only: whether it refuses weights, gradients and state that are not dense and alike.
        dtypes: the dtypes of weights that it takes.
        refuses: for each optimizer, the names in `GOOD` that it refuses.
    """

    name: str
    flags: dict[str, Any]
    fused: str | None = None
    device: str = "cpu"
    dense_only: bool = False
    dtypes: tuple[torch.dtype, ...] = DTYPES
    refuses: dict[str, tuple[str, ...]] = field(default_factory=dict)


# A new backend joins every comparison by one entry.
PATHS = [
    Path("default", {}),
    Path("foreach", {"foreach": True}),
    Path("single_tensor", {"foreach": False}),
    Path(
        "torch_fused",
        {"fused": True},
        fused="torch_fused",
        dense_only=True,
        dtypes=(torch.float32, torch.float64),
        refuses={"AdamP": ("nesterov", "all"), "SGDP": ("dampening",)},
    ),
    Path(
        "native",
        {"fused": True},
        fused="native",
        dense_only=True,
        dtypes=(torch.float32, *HALVES),
    ),
    Path("cuda", {}, device="cuda"),
    Path("cuda_foreach", {"foreach": True}, device="cuda"),
    Path("cuda_capturable", {"foreach": True, "capturable": True}, device="cuda"),
]


def _missing(path):
    """What this machine lacks for the path, or an empty string."""
    if path.device == "cuda" and not torch.cuda.is_available():
        return "needs CUDA"
    if path.fused == "native" and native.refusal(_ANY_BUCKET):
        return f"the native kernel {native.refusal(_ANY_BUCKET)}"
    return ""


_ANY_BUCKET = Bucket(
    [torch.zeros(1)],
    [torch.zeros(1)],
    (),
    [],
    SGDRule(0.1, 0.0, 0.0, 1e-8, 0.0, 0.1, 0.1, False, False),
)


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
        if good.name not in path.refuses.get(family.name, ())
        for dtype in dtypes
        if dtype in path.dtypes
    ]
