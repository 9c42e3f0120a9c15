"""What all tests share: one thread unless a test asks for more, and repeatable random examples."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("repeatable")

# The tests' tensors are tiny: more threads cost time, and the machine is often shared.
torch.set_num_threads(1)


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: compiles for seconds; -m 'not slow' leaves it out")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
