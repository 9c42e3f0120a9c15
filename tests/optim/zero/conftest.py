"""Tests with the real DeepSpeed: `make test-deepspeed` installs it and runs them."""

import os
from importlib.util import find_spec

from tests.optim.distributed.conftest import pools

__all__ = ["pools"]

if find_spec("deepspeed") is None:
    collect_ignore_glob = ["test_*"]

# No compiler, no accelerator: what is looked at here is who holds which elements.
os.environ |= {"DS_ACCELERATOR": "cpu", "DS_BUILD_OPS": "0", "DS_SKIP_CUDA_CHECK": "1"}
