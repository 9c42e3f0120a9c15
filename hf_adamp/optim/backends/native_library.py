"""The compiled kernel csrc/native.c: found, checked and loaded with ctypes."""

from __future__ import annotations

import ctypes
import importlib.machinery
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

__all__ = [
    "SEGMENT",
    "TASK_FIELDS",
    "TILE",
    "WEIGHT_FIELDS",
    "NativeBuffers",
    "NativeRule",
    "NativeSegments",
    "has_float16",
    "load",
]

# As in native.c.
VERSION = 2
SEGMENT = 32768
TILE = 1024
TASK_FIELDS = 6
WEIGHT_FIELDS = 7


class NativeRule(ctypes.Structure):
    """`struct rule`."""

    _fields_ = [
        ("kind", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        *(
            (field, ctypes.c_float)
            for field in (
                *("keep1", "add1", "keep2", "add2", "of_moment", "of_grad", "eps", "sign"),
                *("decay", "projected_decay", "delta"),
            )
        ),
    ]


class NativeBuffers(ctypes.Structure):
    """`struct buffers`."""

    _fields_ = [
        ("stats", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("written", ctypes.c_void_p),
        ("written_as", ctypes.c_void_p),
        ("partials", ctypes.c_void_p),
    ]


class NativeSegments(ctypes.Structure):
    """`struct segments`."""

    _fields_ = [
        ("offsets", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("n", ctypes.c_int64),
    ]


_EXPECTED = (
    VERSION,
    8 * TASK_FIELDS,
    8 * WEIGHT_FIELDS,
    *map(ctypes.sizeof, (NativeRule, NativeBuffers, NativeSegments)),
    SEGMENT,
    TILE,
)


@lru_cache(maxsize=1)
def load() -> tuple[ctypes.CDLL | None, str]:
    """The compiled kernel, or None and why there is none."""
    path = _find()
    if path is None:
        return None, "was not compiled when hf-adamp was installed (no C compiler)"
    try:
        _share_openmp()
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"could not be loaded ({error})"
    if tuple(_build(library)[:-1]) != _EXPECTED:
        return None, "was compiled from another version; reinstall hf-adamp"
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    shared: list[Any] = [pointer, integer, pointer, pointer, pointer]
    library.hf_adamp_total.argtypes = [pointer, integer, *[pointer] * 4]
    library.hf_adamp_decide.argtypes = [pointer, integer, *[pointer] * 9]
    library.hf_adamp_count.argtypes = [pointer, integer]
    library.hf_adamp_accumulate.argtypes = [*shared, pointer, pointer, ctypes.c_int32]
    library.hf_adamp_apply.argtypes = [*shared, pointer, pointer, pointer, ctypes.c_int32]
    return library, ""


def has_float16() -> bool:
    """Whether the compiler knew 16-bit floats."""
    library, _ = load()
    return library is not None and bool(_build(library)[-1])


def _build(library: ctypes.CDLL) -> list[int]:
    """What the kernel was compiled with."""
    build = (ctypes.c_int64 * (len(_EXPECTED) + 1))()
    library.hf_adamp_build(build, len(build))
    return list(build)


def _find() -> Path | None:
    folder = Path(__file__).parent
    candidates = (folder / f"_native{end}" for end in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in candidates if path.exists()), None)


def _share_openmp() -> None:
    """Make torch's OpenMP runtime the one that the kernel's symbols are found in.

    The kernel is linked to none: two runtimes in one process keep two pools of threads, which
    fight over the cores, and only torch's own heeds `torch.set_num_threads`.
    """
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return
    for path in sorted(set(re.findall(r"\S*/lib(?:gomp|iomp5|omp)[^/\s]*\.so\S*", maps))):
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        return
