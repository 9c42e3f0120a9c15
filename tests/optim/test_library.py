"""The kernel is found wherever the package is installed, or the user is told what to do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hf_adamp
from hf_adamp.optim.backends.cpu import library

PACKAGE = Path(hf_adamp.__file__).parent
SCRIPT = """
import hf_adamp, sys
from hf_adamp.optim.backends.cpu import library
assert hf_adamp.__file__.startswith(sys.argv[1]), hf_adamp.__file__
found, reason = library.load()
print(reason or "found")
"""


def copy_of_the_package(folder, *, kernel):
    ignored = shutil.ignore_patterns("__pycache__", *([] if kernel else ["_native*.so"]))
    shutil.copytree(PACKAGE, folder / "hf_adamp", ignore=ignored)
    return folder


def run(clone, *places):
    code = f"import sys; sys.path[:0] = {[str(place) for place in (clone, *places)]}\n{SCRIPT}"
    # -I: without the folder of the tests, and whatever the environment adds.
    command = [sys.executable, "-I", "-c", code, str(clone)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(library.load()[0] is None, reason="needs the native kernel")
def test_clone_without_a_kernel_finds_the_installed_one(tmp_path):
    clone = copy_of_the_package(tmp_path / "clone", kernel=False)
    installed = copy_of_the_package(tmp_path / "site-packages", kernel=True)
    assert run(clone, installed) == "found"


def test_clone_that_is_not_installed_says_what_to_do(tmp_path, monkeypatch):
    clone = copy_of_the_package(tmp_path / "clone", kernel=False)
    monkeypatch.setattr(library, "__file__", str(clone / "hf_adamp/optim/backends/cpu/library.py"))
    monkeypatch.setattr(sys, "path", [str(clone)])
    library.load.cache_clear()
    try:
        found, reason = library.load()
    finally:
        library.load.cache_clear()
    assert found is None
    assert "pip install ." in reason


@pytest.mark.skipif("libasan" not in os.environ.get("LD_PRELOAD", ""), reason="needs make sanitize")
def test_kernel_under_sanitizers_is_the_one_that_is_tested():
    kernel, _ = library.load()
    assert "sanitize" in kernel._name
    assert hasattr(kernel, "__asan_init")
    assert hasattr(kernel, "__ubsan_handle_type_mismatch_v1_abort")
