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


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A folder with a little text in which a word depends on the one before it."""
    import random

    folder = tmp_path_factory.mktemp("text")
    chance = random.Random(0)
    for split, lines in (("train", 300), ("valid", 40), ("test", 40)):
        content = []
        for _ in range(lines):
            word, words = chance.randrange(40), []
            for _ in range(chance.randrange(12)):
                word = (3 * word + chance.randrange(3)) % 40
                words.append(f"w{word}")
            content.append(" ".join(words))
        everything = " ".join(f"w{n}" for n in range(40)) if split == "train" else ""
        (folder / f"{split}.txt").write_text("\n".join([everything, *content]) + "\n")
    return folder
