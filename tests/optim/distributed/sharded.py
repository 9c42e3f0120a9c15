"""Sharded copies of weights and gradients, and their comparison with whole ones."""

import inspect

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from tests.tolerances import assert_close

# torch 2.6 sends the first process's values in any case, and fails where a part is empty.
SENDS_ALWAYS = "src_data_rank" not in inspect.signature(distribute_tensor).parameters


def fit(placements, tensor):
    """The placements that this tensor can have: vectors are sharded along what they have."""
    if tensor.ndim == 0:
        return [Replicate()] * len(placements)
    limit = tensor.ndim - 1
    return [Shard(min(p.dim, limit)) if isinstance(p, Shard) else p for p in placements]


def shard(tensor, mesh: DeviceMesh, placements):
    """This tensor as a DTensor; every process already has the same values, so none are sent."""
    placements, tensor = fit(placements, tensor), tensor.detach().clone()
    if not SENDS_ALWAYS:
        return distribute_tensor(tensor, mesh, placements, src_data_rank=None)
    part = tensor
    for dim, placement in enumerate(placements):
        if isinstance(placement, Shard):
            chunks = part.chunk(mesh.size(dim), placement.dim)
            at = mesh.get_local_rank(dim)
            none = part.narrow(placement.dim, 0, 0)
            part = chunks[at] if at < len(chunks) else none
    where = {"shape": tensor.shape, "stride": tensor.stride()}
    return DTensor.from_local(part.contiguous(), mesh, placements, run_check=False, **where)


def shard_like(tensor, like):
    """Sharded as `like` is, or a copy where that is not sharded."""
    if not isinstance(like, DTensor):
        return tensor.detach().clone()
    return shard(tensor, like.device_mesh, like.placements)


def shard_weights(weights, mesh, placements):
    """Parameters with the same values, sharded."""
    return [nn.Parameter(shard(weight, mesh, placements)) for weight in weights]


def set_sharded_grads(params, grads):
    """Hand each weight its part of a gradient, or none."""
    for param, grad in zip(params, grads, strict=True):
        param.grad = None if grad is None else shard_like(grad.to(param.dtype), param)


def whole(tensor):
    """All of a tensor, on every process."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_parts_close(family, sharded, single, *, names, step):
    """Weights and state of a sharded optimizer are the parts of the single process's, every bit."""
    pairs = zip(names, _params(sharded), _params(single), strict=True)
    for name, param, expected in pairs:
        _assert_part_close(param, expected, f"step {step}: weight {name}")
        state, expected_state = sharded.state[param], single.state[expected]
        assert state.keys() == expected_state.keys(), name
        for key in family.moments:
            if key in state:
                _assert_part_close(state[key], expected_state[key], f"step {step}: {key} of {name}")
        if "step" in state:
            assert float(state["step"]) == float(expected_state["step"]), name


def _assert_part_close(actual, expected, what):
    part = shard_like(expected, actual)
    if isinstance(actual, DTensor):
        actual, part = actual.to_local(), part.to_local()
    assert actual.shape == part.shape, what
    assert_close(actual, part, what=what)


def _params(optimizer):
    return [param for group in optimizer.param_groups for param in group["params"]]


def largest_difference(actual, expected):
    """Of any element of two lists of tensors."""
    return max(
        (
            (whole(a).detach().double() - whole(b).detach().double()).abs().max().item()
            for a, b in zip(actual, expected, strict=True)
            if a.numel()
        ),
        default=0.0,
    )
