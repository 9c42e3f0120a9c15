"""Ways to spread one network over processes, each with the single process that it must equal.

The network has weights of all three views: a convolution whose channels are normalized on their
own (channel view), two linear maps in front of a LayerNorm (layer view), and a head (none). It has
no bias in front of a normalization: its gradient would be pure round-off, which any Adam
normalizes to a full step, so that no two ways of summing agree. And it has no BatchNorm, whose
statistics are those of a process's own batch.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from tests.optim.distributed.sharded import whole

BATCH = 4


class Net(nn.Module):
    """A convolution with 6 channels, 10 hidden units, 9 features, 5 classes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.channel_norm = nn.GroupNorm(6, 6)
        self.up = nn.Linear(96, 10, bias=False)
        self.down = nn.Linear(10, 9, bias=False)
        self.norm = nn.LayerNorm(9)
        self.head = nn.Linear(9, 5)

    def forward(self, images):
        features = self.channel_norm(self.conv(images)).relu().flatten(1)
        return self.head(self.norm(self.down(self.up(features).relu())))


@dataclass(frozen=True)
class Strategy:
    """A way to spread the network.

    Attributes:
        name: how the documentation names it.
        sizes: the numbers of processes it is tested with.
        apply: spreads the network over all processes; may change it in place.
        model_parallel: how many processes share a batch.
        micro_batches: how many batches a step's gradient is gathered from.
        max_norm: what the gradient is clipped to, if anything.
        compute_dtype: what forward and backward are computed in, if not in the weights' dtype.
    """

    name: str
    sizes: tuple[int, ...]
    apply: Callable[[nn.Module], nn.Module]
    model_parallel: int = 1
    micro_batches: int = 1
    max_norm: float | None = None
    compute_dtype: torch.dtype | None = None
    after_backward: Callable[[nn.Module], None] = field(default=lambda model: None)


def _fsdp(model, *, mesh=None, **options):
    for block in (model.conv, model.up, model.down):
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def _largest_even_dim(param):
    # FSDP2 wants what is not rows to be split evenly.
    size = distributed.get_world_size()
    return Shard(1) if param.ndim > 1 and param.shape[1] % size == 0 else Shard(0)


def _hsdp(model):
    return _fsdp(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "shard")))


def _tensor_parallel(model, mesh=None):
    mesh = mesh or init_device_mesh("cpu", (distributed.get_world_size(),))
    # As a DTensor the hidden layer may be split unevenly.
    plan = {"up": ColwiseParallel(use_local_output=False), "down": RowwiseParallel()}
    return parallelize_module(model, mesh, plan)


def _sequence_parallel(model):
    plan = {
        "up": ColwiseParallel(use_local_output=False),
        "down": RowwiseParallel(output_layouts=Shard(0)),
        "norm": SequenceParallel(sequence_dim=0),
        "head": ColwiseParallel(input_layouts=Shard(0), output_layouts=Replicate()),
    }
    return parallelize_module(model, init_device_mesh("cpu", (distributed.get_world_size(),)), plan)


def _two_dimensional(model):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    return _fsdp(_tensor_parallel(model, mesh["tp"]), mesh=mesh["dp"])


def _several_meshes(model):
    """One block over 2 × 2 processes, one over all of them, one over two by two; the rest whole."""
    flat = init_device_mesh("cpu", (4,))
    nested = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "shard"))
    fully_shard(model.conv, mesh=flat)
    fully_shard(model.up, mesh=nested)
    return model


def _average_gradients_of_whole_weights(model):
    for param in model.parameters():
        if whole(param) is param:
            distributed.all_reduce(param.grad)
            param.grad /= distributed.get_world_size()


STRATEGIES = [
    Strategy("DDP", (2, 3), DistributedDataParallel),
    Strategy("FSDP2, Shard(0)", (2, 3, 4), _fsdp),
    Strategy("FSDP2, Shard(1)", (2,), partial(_fsdp, shard_placement_fn=_largest_even_dim)),
    Strategy("HSDP (2 × 2)", (4,), _hsdp),
    Strategy("tensor parallel", (2, 3), _tensor_parallel, model_parallel=0),
    Strategy("tensor and sequence parallel", (2,), _sequence_parallel, model_parallel=0),
    Strategy("tensor parallel × FSDP2 (2 × 2)", (4,), _two_dimensional, model_parallel=2),
    Strategy(
        "three kinds of mesh and whole weights",
        (4,),
        _several_meshes,
        after_backward=_average_gradients_of_whole_weights,
    ),
    Strategy(
        "FSDP2, CPU offload",
        (2,),
        partial(_fsdp, offload_policy=CPUOffloadPolicy(pin_memory=False)),
    ),
    Strategy(
        "FSDP2, mixed precision",
        (2,),
        partial(
            _fsdp,
            mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
        ),
        compute_dtype=torch.bfloat16,
    ),
    Strategy("DDP, accumulation and clipping", (2,), DistributedDataParallel, 1, 3, 0.05),
    Strategy("FSDP2, accumulation and clipping", (3,), _fsdp, 1, 3, 0.05),
    Strategy("HSDP, accumulation and clipping", (4,), _hsdp, 1, 2, 0.05),
]


def batch_of(step, micro, reader, dtype):
    """What a process reads: the same whatever the number of processes."""
    draw = torch.Generator().manual_seed(10_000 * step + 100 * micro + reader)
    images = torch.randn(BATCH, 2, 4, 4, generator=draw, dtype=torch.float64).to(dtype)
    return images, torch.randint(5, (BATCH,), generator=draw)


def single_backward(model, step, readers, micro_batches=1, compute_dtype=None):
    """Gradients of the mean over all batches, each computed as a process computes it."""
    params = list(model.parameters())
    for param in params:
        param.grad = torch.zeros_like(param)
    computing = model
    if compute_dtype is not None:
        computing = Net().to(compute_dtype)
        computing.load_state_dict(model.state_dict())
    for micro in range(micro_batches):
        for reader in range(readers):
            images, labels = batch_of(step, micro, reader, params[0].dtype)
            logits = computing(images.to(compute_dtype)).to(params[0].dtype)
            loss = cross_entropy(logits, labels) / (micro_batches * readers)
            gradients = torch.autograd.grad(loss, list(computing.parameters()))
            for param, gradient in zip(params, gradients, strict=True):
                param.grad += gradient.to(param.dtype)


class Pair:
    """A network spread over processes and its twin on each of them, with an optimizer for each.

    Args:
        strategy: how to spread it.
        make: makes an optimizer of a list of parameters.
        dtype: of the weights.
    """

    def __init__(self, strategy: Strategy, make: Callable[[Any], Any], dtype=torch.float32):
        self.strategy, self.dtype = strategy, dtype
        torch.manual_seed(0)
        self.single = Net().to(dtype)
        self.spread = Net().to(dtype)
        self.spread.load_state_dict(self.single.state_dict())
        self.spread = strategy.apply(self.spread)
        self.names = [name for name, _ in self.single.named_parameters()]
        self.single_optimizer = make(list(self.single.parameters()))
        self.optimizer = make(list(self.spread.parameters()))
        self.share = strategy.model_parallel or distributed.get_world_size()
        self.readers = distributed.get_world_size() // self.share

    def backward(self, step):
        """Gradients of both networks, the same up to round-off."""
        strategy = self.strategy
        single_backward(
            self.single, step, self.readers, strategy.micro_batches, strategy.compute_dtype
        )
        self._backward_spread(step)
        if self.strategy.max_norm:
            for model in (self.single, self.spread):
                norm = nn.utils.clip_grad_norm_(model.parameters(), self.strategy.max_norm)
                assert whole(norm) > self.strategy.max_norm, "nothing was clipped"

    def single_step(self, step, readers):
        """A step of the twin alone, on as many batches as so many processes would read."""
        single_backward(self.single, step, readers)
        self.single_optimizer.step()

    def _backward_spread(self, step):
        self.optimizer.zero_grad()
        reader = distributed.get_rank() // self.share
        last = self.strategy.micro_batches - 1
        for micro in range(last + 1):
            images, labels = batch_of(step, micro, reader, self.dtype)
            with self._gathering(more=micro < last):
                loss = cross_entropy(self.spread(images).to(self.dtype), labels)
                (loss / self.strategy.micro_batches).backward()
        self.strategy.after_backward(self.spread)

    def _gathering(self, *, more):
        """What holds back the exchange of gradients while more are to come."""
        if isinstance(self.spread, FSDPModule):
            self.spread.set_requires_gradient_sync(not more)
        elif more and isinstance(self.spread, DistributedDataParallel):
            return self.spread.no_sync()
        return nullcontext()

    def step(self, step):
        self.backward(step)
        self.single_optimizer.step()
        self.optimizer.step()
