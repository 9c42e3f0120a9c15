"""The native kernel, which is optional: without a C compiler the package installs without it."""

import platform

from setuptools import Extension, setup

# Of OpenMP only the marks on loops, which need no runtime. No flag may let the compiler forget NaN
# or infinity.
_EVERYWHERE = ["-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"]
_FLAGS = {"Linux": _EVERYWHERE, "Darwin": _EVERYWHERE}

_FOLDER = "hf_adamp/optim/backends/cpu"

native = Extension(
    f"{_FOLDER.replace('/', '.')}._native",
    sources=[f"{_FOLDER}/csrc/kernel.c"],
    depends=[f"{_FOLDER}/csrc/{name}.h" for name in ("types", "decision", "rows")],
    extra_compile_args=_FLAGS.get(platform.system(), []),
    optional=True,
)

setup(ext_modules=[native] if platform.system() in _FLAGS else [])
