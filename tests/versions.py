"""What older versions inside the supported ranges lack, as marks of the tests that need it."""

import pytest
import torch
import transformers
from packaging.version import Version

__all__ = ["needs_a_stack_of_experts", "needs_fsdp2_on_a_cpu", "needs_torch", "traced"]

needs_a_stack_of_experts = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.0"),
    reason="Transformers 4 has a module for each expert, not one weight for all",
)


def needs_torch(version: str, reason: str) -> pytest.MarkDecorator:
    """Skip with an older torch, visibly."""
    return pytest.mark.skipif(Version(torch.__version__) < Version(version), reason=reason)


needs_fsdp2_on_a_cpu = needs_torch("2.7", "FSDP2 of torch 2.6 needs a GPU")

traced = needs_torch(
    "2.7", "torch 2.6 does not trace how a plan is made; such a step runs uncompiled"
)
