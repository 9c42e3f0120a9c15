"""The native kernel, which is optional: without a C compiler the package installs without it."""

import platform

from setuptools import Extension, setup

# The kernel finds its OpenMP in the runtime that torch has loaded, so it is compiled for it but
# linked to none. No flag may let the compiler forget NaN or infinity.
_FLAGS = {
    "Linux": ["-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fopenmp"],
    "Darwin": ["-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math"],
}

native = Extension(
    "hf_adamp.optim.backends._native",
    sources=["hf_adamp/optim/backends/csrc/native.c"],
    depends=[f"hf_adamp/optim/backends/csrc/{name}.h" for name in ("decision", "rows")],
    extra_compile_args=_FLAGS.get(platform.system(), []),
    optional=True,
)

setup(ext_modules=[native] if platform.system() in _FLAGS else [])
