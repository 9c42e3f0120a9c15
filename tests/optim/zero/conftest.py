"""Tests with the real DeepSpeed: `make test-deepspeed` installs it and runs them."""

import os
from importlib.util import find_spec

import pytest

from tests.optim.distributed.processes import Pool

if find_spec("deepspeed") is None:
    collect_ignore_glob = ["test_*"]

# No compiler, no accelerator: what is looked at here is who holds which elements.
os.environ |= {"DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0", "DS_SKIP_CUDA_CHECK": "1"}


@pytest.fixture(scope="module")
def pools():
    made = {}

    def pool_of(size):
        for other in [n for n in made if n != size]:
            made.pop(other).close()
        return made.setdefault(size, Pool(size))

    yield pool_of
    for pool in made.values():
        pool.close()
