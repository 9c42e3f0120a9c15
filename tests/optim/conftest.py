"""Pins `fused` to the backend that a test's path names: each kernel is tested on its own."""

from importlib import import_module

import pytest

from hf_adamp.optim import backends


@pytest.fixture(autouse=True)
def _pinned_backend(request, monkeypatch):
    path = getattr(request.node, "callspec", None) and request.node.callspec.params.get("path")
    if path is not None and path.fused is not None:
        module = import_module(f"{backends.__name__}.{path.fused}")
        monkeypatch.setattr(backends, "_FUSED", (module,))
