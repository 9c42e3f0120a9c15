"""The native kernel, which is optional: without a C compiler the package installs without it."""

import os
import platform
import sysconfig
from glob import glob

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

# Of OpenMP only the marks on loops, which need no runtime. No flag may let the compiler forget NaN
# or infinity.
_EVERYWHERE = ["-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"]
_FLAGS = {"Linux": _EVERYWHERE, "Darwin": _EVERYWHERE}

_FOLDER = "hf_adamp/optim/backends/cpu"


class Kernel(build_ext):
    """Plain C that ctypes loads: one file serves every Python, so its name tells of none."""

    def get_ext_filename(self, fullname: str) -> str:
        """Leave out the tag of the Python that builds it."""
        name: str = super().get_ext_filename(fullname)
        tagged = sysconfig.get_config_var("EXT_SUFFIX")
        return name.removesuffix(tagged) + ".so" if tagged else name


class Wheel(bdist_wheel):
    """One wheel per platform, for every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        """Keep the platform only, and not even that where the kernel was not compiled."""
        has_kernel = any(map(os.path.exists, self.get_finalized_command("build_ext").get_outputs()))
        return "py3", "none", super().get_tag()[2] if has_kernel else "any"


native = Extension(
    f"{_FOLDER.replace('/', '.')}._native",
    sources=[f"{_FOLDER}/csrc/kernel.c"],
    depends=glob(f"{_FOLDER}/csrc/*.h"),
    extra_compile_args=_FLAGS.get(platform.system(), []),
    optional=True,
)

setup(
    ext_modules=[native] if platform.system() in _FLAGS else [],
    cmdclass={"build_ext": Kernel, "bdist_wheel": Wheel},
)
