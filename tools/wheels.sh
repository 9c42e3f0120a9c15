#!/usr/bin/env bash
# Build a wheel for every platform that the cross-compiler reaches, and the source distribution, into
# dist/, and check them (`make wheels`, which installs the tools).
#
# The kernel needs no headers of Python or torch, so one compiler that installs with pip builds it for
# all platforms on any of them. cibuildwheel would need a runner of each platform, or emulation, to
# come to the same files; it is the simpler one where a package is built against Python's headers.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=${1:?the folder of the programs}
compiler="$(realpath "$bin")/python -m ziglang cc"

build() { # PLATFORM TARGET
  rm -rf build/lib* build/temp* build/bdist*
  CC="$compiler -target $2" LDSHARED="$compiler -target $2 -shared -s" \
    "$bin/python" setup.py --quiet bdist_wheel --plat-name "$1" --dist-dir dist > "build/$1.log" 2>&1
  # Setup goes on where the kernel does not compile, since an installation is to succeed without it.
  "$bin/python" -m zipfile --list dist/*-py3-none-"$1".whl | grep -q '_native\.so' ||
    { cat "build/$1.log" && echo "the wheel for $1 has no kernel" && exit 1; }
}

mkdir -p build
rm -rf dist
"$bin/python" -m build --sdist --outdir dist . > build/sdist.log 2>&1 || { cat build/sdist.log && exit 1; }
build manylinux2014_x86_64 x86_64-linux-gnu.2.17
build manylinux2014_aarch64 aarch64-linux-gnu.2.17
build musllinux_1_2_x86_64 x86_64-linux-musl
build macosx_11_0_arm64 aarch64-macos.11.0
build macosx_10_13_x86_64 x86_64-macos.10.13
build win_amd64 x86_64-windows-gnu
"$bin/twine" check --strict dist/*
# Of musl it knows nothing where the machine itself runs on glibc.
for wheel in dist/*manylinux*.whl; do "$bin/auditwheel" show "$wheel"; done
