"""Lets Accelerate use DeepSpeed without an accelerator."""

from accelerate import PartialState
from accelerate.utils import DistributedType


def take_gloo_for_accelerators():
    """Accelerate uses DeepSpeed where it has a backend other than a CPU's only."""

    def backend(self, cpu, sagemaker=False, backend=None):
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = backend
