"""The compiled kernel csrc/kernel.c: found, checked and loaded with ctypes."""

from __future__ import annotations

import ctypes
import importlib.machinery
import sys
from functools import lru_cache
from pathlib import Path

import torch

from ...rules import Coefficients

__all__ = [
    "SEGMENT",
    "Block",
    "Crew",
    "Problem",
    "Rule",
    "Task",
    "has_float16",
    "level",
    "load",
    "parallel",
]

# As in types.h.
VERSION = 6
SEGMENT = 32768


class Rule(ctypes.Structure):
    """`struct rule`."""

    _fields_ = [
        *((name, ctypes.c_float) for name in Coefficients._fields),
        ("padding", ctypes.c_int32),
        *((name, ctypes.c_double) for name in ("lr", "beta1", "beta2")),
    ]


class Block(ctypes.Structure):
    """`struct block`."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("tensor", "mode", "first_row", "rows", "columns", "numel"),
            *("first_vector", "vectors", "first_task", "tasks"),
        )
    ]


class Task(ctypes.Structure):
    """`struct task`."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in ("block", "row", "rows", "offset", "columns", "stride", "slot")
    ]


class Problem(ctypes.Structure):
    """`struct problem`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("kind", "weight_dtype", "moment_dtype", "rounding")),
        ("level", ctypes.c_int32),
        *((name, ctypes.c_int64) for name in ("n_tensors", "n_blocks", "n_tasks", "n_order")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("rules", "rule_of", "weights", "grads", "moments1", "moments2"),
                *("compensations", "counts", "seeds", "scalars", "blocks", "tasks", "order"),
                *("vectors", "left", "stats"),
            )
        ),
        ("n_rows", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("partials", "written", "shift", "views")),
    ]


class Crew(ctypes.Structure):
    """`struct crew`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("inside", "threads")),
        *((name, ctypes.c_void_p) for name in ("queue", "parallel")),
    ]


_EXPECTED = [
    VERSION,
    *map(ctypes.sizeof, (Rule, Block, Task, Problem, Crew)),
    SEGMENT,
]


@lru_cache(maxsize=1)
def load() -> tuple[ctypes.CDLL | None, str]:
    """The compiled kernel, or None and why there is none."""
    path = _find()
    if path is None:
        return None, (
            "is not installed: there was no C compiler when hf-adamp was, or this is a clone that "
            "is not; run `pip install .` with a C compiler"
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"could not be loaded ({error})"
    if _build(library)[:-1] != _EXPECTED:
        return None, "was compiled from another version; reinstall hf-adamp"
    for name in ("step", "measure", "write"):
        function = getattr(library, f"hf_adamp_{name}")
        function.argtypes = [ctypes.POINTER(Problem), ctypes.POINTER(Crew)]
        function.restype = None
    library.hf_adamp_help.argtypes = [ctypes.POINTER(Crew)]
    library.hf_adamp_help.restype = None
    return library, ""


def parallel() -> int | None:
    """Where the entry is of the OpenMP runtime that torch computes with, if torch shows it.

    torch loads its dependencies so that everybody finds their symbols (on Linux). Nothing is linked
    or loaded here: a second runtime's threads would fight with torch's.
    """
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError, TypeError):  # no such symbol; no such handle on Windows
        return None


def has_float16() -> bool:
    """Whether the compiler knew 16-bit floats."""
    library, _ = load()
    return library is not None and bool(_build(library)[-1])


def level() -> int:
    """Which of the kernel's `LEVELS` the processor has: the one that torch's own kernels run at.

    `ATEN_CPU_CAPABILITY`, which lowers torch's, lowers it too.
    """
    return {"AVX2": 1, "AVX512": 2}.get(torch.backends.cpu.get_cpu_capability(), 0)


def _build(library: ctypes.CDLL) -> list[int]:
    """What the kernel was compiled with."""
    build = (ctypes.c_int64 * (len(_EXPECTED) + 1))()
    library.hf_adamp_build(build, ctypes.c_int64(len(build)))
    return list(build)


def _find() -> Path | None:
    """The kernel beside this file, or in an installed copy of the package.

    In a clone after `pip install .`, Python imports the clone's package, which has none of its own.
    Whether an installed one is of the same version, its build tells.
    """
    folder = Path(__file__).parent
    inside = folder.relative_to(folder.parents[3])
    places = [folder, *(Path(entry) / inside for entry in sys.path if entry)]
    candidates = (
        place / f"_native{end}"
        for place in places
        for end in (".so", *importlib.machinery.EXTENSION_SUFFIXES)
    )
    return next((path for path in candidates if path.exists()), None)
