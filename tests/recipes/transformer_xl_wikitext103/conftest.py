"""Recipes are modules of the repository, not of the package: make them importable."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))


@pytest.fixture
def tiny():
    """Settings of a model that is built and trained in no time."""
    return {
        "vocab_size": 50,
        "cutoffs": [10, 20],
        "d_model": 16,
        "n_layer": 2,
        "n_head": 2,
        "d_head": 6,
        "d_inner": 32,
        "mem_len": 8,
        "dropout": 0.0,
    }
