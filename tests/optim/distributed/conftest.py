"""Pools of processes, each ended with the file that used it."""

import re

import pytest

from tests.optim.distributed.processes import Pool
from tests.versions import needs_fsdp2_on_a_cpu

# Names of strategies, as they stand in the names of tests.
WITH_FSDP2 = re.compile(r"\[.*(FSDP2|HSDP|three.kinds.of.mesh)")


def pytest_collection_modifyitems(items):
    for item in items:
        if WITH_FSDP2.search(item.nodeid):
            item.add_marker(needs_fsdp2_on_a_cpu)


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
