"""Weights and state in fewer bits, sharded: the parts of what one process has."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard

from hf_adamp import AdamP
from hf_adamp.optim.storage import _part, load
from tests.optim.distributed.sharded import set_sharded_grads, shard_like, shard_weights
from tests.training import set_grads
from tests.weights import generator

PLACEMENTS = {
    "rows": [Shard(0)],
    "columns": [Shard(1)],
    "replicate": [Replicate()],
}


def make(count, dtype):
    draw = generator(count)
    shapes = [(64, 128), (16, 8, 32, 2), (64,), (7, 5)]
    return [torch.randn(shape, generator=draw).to(dtype) for shape in shapes]


def check_parts(placement, dtype, options):
    mesh = init_device_mesh("cpu", (2,))
    single = [nn.Parameter(w) for w in make(0, dtype)]
    sharded = shard_weights(make(0, dtype), mesh, PLACEMENTS[placement])
    expected, actual = (AdamP(w, weight_decay=0.1, **options) for w in (single, sharded))
    for step in range(5):
        # Whatever a process draws for itself.
        torch.manual_seed(mesh.get_rank())
        grads = make(1 + step, torch.float32)
        grads[step % 3] = None
        set_grads(single, grads)
        set_sharded_grads(sharded, grads)
        expected.step()
        actual.step()
    # Drawn anew for each part: a few of bfloat16's steps apart. Blocks of 8 bits are cut anew.
    close = {}
    if "stochastic" in options.values():
        # Five steps of 1e-3 from moments that are kept in bfloat16, each off by one of its steps.
        close = {"rtol": 2**-5, "atol": 5 * 1e-3 * 2**-7}
    elif "8bit" in options.values():
        # A tenth of how far five steps go.
        close = {"rtol": 2**-7, "atol": 5e-4}
    for part, param in zip(sharded, single, strict=True):
        mine = shard_like(param, part).to_local()
        torch.testing.assert_close(part.to_local().detach(), mine.detach(), **close)
        for key in ("exp_avg", "exp_avg_sq"):
            moment = load(expected.state[param][key])
            wanted = shard_like(moment, part).to_local()
            ours = load(_part(actual.state[part][key]))
            torch.testing.assert_close(ours, wanted, rtol=0.1, atol=0.02 * moment.abs().max())


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {}),
        (torch.bfloat16, {"rounding": "kahan"}),
        (torch.bfloat16, {"state_dtype": "8bit"}),
        (torch.bfloat16, {"rounding": "stochastic", "state_dtype": "bfloat16"}),
    ],
    ids=str,
)
def test_sharded_low_precision_is_the_single_process_in_parts(pool, placement, dtype, options):
    pool.run(check_parts, placement, dtype, options)


def check_replicas(options):
    mesh = init_device_mesh("cpu", (2,))
    params = shard_weights(make(0, torch.bfloat16), mesh, [Replicate()])
    optimizer = AdamP(params, lr=1e-4, rounding="stochastic", **options)
    for step in range(4):
        torch.manual_seed(mesh.get_rank())
        set_sharded_grads(params, make(1 + step, torch.float32))
        optimizer.step()
    for param in params:
        mine = param.to_local().detach().clone()
        torch.distributed.broadcast(mine, 0)
        assert torch.equal(mine, param.to_local())


@pytest.mark.parametrize("options", [{}, {"state_dtype": "bfloat16"}], ids=str)
def test_copies_of_a_weight_are_rounded_alike(pool, options):
    pool.run(check_replicas, options)
