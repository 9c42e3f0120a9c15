"""Pools of processes, each ended with the file that used it."""

import pytest

from tests.optim.distributed.processes import Pool


@pytest.fixture(scope="module")
def pools():
    made = {}

    def pool_of(size):
        # One at a time: idle processes take memory.
        for other in [n for n in made if n != size]:
            made.pop(other).close()
        return made.setdefault(size, Pool(size))

    yield pool_of
    for pool in made.values():
        pool.close()


@pytest.fixture
def pool(pools):
    return pools(2)
