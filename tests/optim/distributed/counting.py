"""Counts what processes say to each other, whoever asks for it: c10d's own and functional calls."""

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_NAMESPACES = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "c10d_functional")
# What a functional collective needs around it; nothing is sent.
_SILENT = ("wait_tensor", "_wrap_tensor_autograd")


class CountedCollectives(TorchDispatchMode):
    """Lists every collective in its `with` block.

    Attributes:
        calls: name and bytes of each, in order; bytes are of what a process puts in.
    """

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[str, int]] = []

    @property
    def total_bytes(self) -> int:
        return sum(size for _, size in self.calls)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            # It comes back here with the tensors that it is made of.
            return NotImplemented
        name = func._schema.name.split("::")[-1]
        if func.namespace in _NAMESPACES and name not in _SILENT:
            tensors = [leaf for leaf in tree_leaves(args[:1]) if torch.is_tensor(leaf)]
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
            self.calls.append((name.rstrip("_"), size))
        return func(*args, **(kwargs or {}))
