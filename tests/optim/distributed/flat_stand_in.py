"""What DeepSpeed ZeRO does to an optimizer, done by hand: flat ranges in the place of weights.

Only what is read of it is here. tests/optim/zero holds the map of these shards against that of the
real DeepSpeed.
"""

import sys
from types import ModuleType, SimpleNamespace

import torch
from torch import distributed, nn

from hf_adamp import SGDP, AdamP
from tests.references import CHANNEL, HEAD, LAYER, NONE

OPTIONS = {
    AdamP: {"lr": 3e-3, "weight_decay": 0.1},
    SGDP: {"lr": 0.05, "weight_decay": 0.01, "momentum": 0.9, "nesterov": True},
}
# What may be said of the hidden layer's ten rows, and the view that follows from it.
DECLARED = {
    "row": CHANNEL,
    "tensor": LAYER,
    ("head", 5): HEAD,
    ("head_dim", 5): HEAD,
    ("rows", (3, 7)): HEAD,
    ("rows", (3, -5, 2)): HEAD,
}
# Seen in training where nothing is declared: both views, and neither.
SEEN = {("conv.weight", CHANNEL), ("down.weight", LAYER), ("head.weight", NONE)}


def _modules():
    accelerator = ModuleType("deepspeed.accelerator")
    accelerator.get_accelerator = lambda: SimpleNamespace(device_name=lambda: "cpu")
    return {"deepspeed": ModuleType("deepspeed"), "deepspeed.accelerator": accelerator}


class Imported:
    """Within, Python has imported what looks like DeepSpeed."""

    def __enter__(self):
        self._added = {k: v for k, v in _modules().items() if k not in sys.modules}
        sys.modules.update(self._added)

    def __exit__(self, *_):
        for name in self._added:
            del sys.modules[name]


def _padded(tensors, multiple):
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    return torch.cat([flat, flat.new_zeros(-len(flat) % multiple)])


class Stage2:
    """Each group in one buffer of which every process steps an equal range."""

    def __init__(self, optimizer):
        self.optimizer, self.size = optimizer, distributed.get_world_size()
        self.params = [group["params"] for group in optimizer.param_groups]
        self.buffers = []
        for group, params in zip(optimizer.param_groups, self.params, strict=True):
            buffer = _padded(params, 2 * self.size)
            self.buffers.append(buffer)
            begin = 0
            for param in params:
                param.data = buffer[begin : begin + param.numel()].view(param.shape)
                begin += param.numel()
            group["params"] = [nn.Parameter(self._own(buffer).clone())]

    def _own(self, buffer):
        return buffer.chunk(self.size)[distributed.get_rank()]

    def step(self):
        """One group after the other, as if it were the only one; then everybody has all of it."""
        groups = self.optimizer.param_groups
        for group, params, buffer in zip(groups, self.params, self.buffers, strict=True):
            (flat,) = group["params"]
            grads = _padded([param.grad for param in params], 2 * self.size)
            distributed.all_reduce(grads)
            flat.grad = self._own(grads) / self.size
            self.optimizer.param_groups = [group]
            self.optimizer.step()
            parts = list(buffer.chunk(self.size))
            distributed.all_gather(parts, flat.detach())
            for part, gathered in zip(buffer.chunk(self.size), parts, strict=True):
                part.copy_(gathered)
        self.optimizer.param_groups = groups


class Stage3:
    """Each weight cut by itself; a flat tensor has this process's parts of a group's weights."""

    def __init__(self, optimizer):
        self.optimizer, self.size = optimizer, distributed.get_world_size()
        self.groups = [group["params"] for group in optimizer.param_groups]
        self.flats, number = [], 0
        for group, params in zip(optimizer.param_groups, self.groups, strict=True):
            first = number
            for param in params:
                own = self._own(param)
                param.ds_shape, param.ds_numel, param.ds_id = param.shape, param.numel(), number
                param.ds_tensor, param.ds_process_group = own, distributed.group.WORLD
                own.ds_numel = own.numel()
                number += 1
            flat = nn.Parameter(torch.cat([param.ds_tensor for param in params]))
            flat.ds_id = f"{first}_{number - 1}"
            self.flats.append(flat)
            group["params"] = []

    def _own(self, tensor):
        return _padded([tensor], self.size).chunk(self.size)[distributed.get_rank()].clone()

    def step(self):
        """One flat tensor after the other, the other groups empty."""
        groups = self.optimizer.param_groups
        for group, params, flat in zip(groups, self.groups, self.flats, strict=True):
            for param in params:
                distributed.all_reduce(param.grad)
            flat.grad = torch.cat([self._own(param.grad / self.size) for param in params])
            group["params"] = [flat]
            self.optimizer.step()
            group["params"] = []
            self._gather(params, flat)

    def _gather(self, params, flat):
        sizes = [param.ds_tensor.numel() for param in params]
        for param, own in zip(params, flat.detach().split(sizes), strict=True):
            param.ds_tensor.copy_(own)
            parts = [torch.empty_like(own) for _ in range(self.size)]
            distributed.all_gather(parts, own.contiguous())
            whole = torch.cat(parts)[: param.ds_numel]
            param.data.copy_(whole.view(param.ds_shape))


STAGES = {"stage 2": Stage2, "stage 3": Stage3}


def groups_of(model, declared="auto"):
    """Vectors first: the group that needs no projection must not hide the others.

    What is declared is so of the hidden layer's ten rows of 96, in a group of its own.
    """

    def is_matrix(param):
        return len(getattr(param, "ds_shape", param.shape)) > 1

    own = [] if declared == "auto" else [model.up.weight]
    params = list(model.parameters())
    others = [p for p in params if is_matrix(p) and all(p is not q for q in own)]
    groups = [
        {"params": [p for p in params if not is_matrix(p)], "weight_decay": 0.0},
        {"params": others},
        {"params": own, "scale_invariant": declared},
    ]
    return [group for group in groups if group["params"]]


def views_of(optimizer, model):
    """Names and views of the latest step."""
    names = {id(param): name for name, param in model.named_parameters()}
    return {
        (names[id(param)], int(view))
        for record in optimizer.last_step
        for param, view in zip(record.params, record.view, strict=True)
    }
