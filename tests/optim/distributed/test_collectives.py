"""How often processes talk in a step, and how much they say; and that none ever waits in vain.

All collectives are counted, ours or not.

15 s of processor time on the machine they were written on.
"""

from functools import partial

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard

from hf_adamp import AdamP
from tests.optim.distributed.counting import CountedCollectives
from tests.optim.distributed.sharded import (
    set_sharded_grads,
    shard_weights,
)
from tests.optim.distributed.strategies import STRATEGIES, Pair
from tests.weights import make_grads, make_weights

FLOAT = 4
PER_WEIGHT, PER_ROW = 6 * FLOAT, 5 * FLOAT

# The network has four weights with rows: 6 + 10 + 9 + 5 rows.
BYTES = {
    "DDP": [],
    "FSDP2, Shard(0)": [4 * PER_WEIGHT],
    # The head's 9 columns cannot be halved, so its rows are.
    "FSDP2, Shard(1)": [(6 + 10 + 9) * PER_ROW, PER_WEIGHT],
    "HSDP (2 × 2)": [4 * PER_WEIGHT],
    "tensor parallel": [9 * PER_ROW, PER_WEIGHT],
    # Rank 0 holds 5 of the 9 rows that are split. Both meshes share their processes for FSDP2.
    "tensor parallel × FSDP2 (2 × 2)": [5 * PER_ROW, 4 * PER_WEIGHT, PER_WEIGHT],
    "FSDP2, CPU offload": [4 * PER_WEIGHT],
    "FSDP2, mixed precision": [4 * PER_WEIGHT],
}


def count_calls(strategy_index):
    return _calls(Pair(STRATEGIES[strategy_index], partial(AdamP, lr=1e-3)))


def _calls(pair):
    pair.step(0)
    pair.backward(1)
    with CountedCollectives() as counted:
        pair.optimizer.step()
    return counted.calls


@pytest.mark.parametrize("name", BYTES, ids=lambda name: name.replace(" ", "_").replace("×", "x"))
def test_step_adds_up_once_a_mesh_dimension(pools, name):
    index, strategy = next((i, s) for i, s in enumerate(STRATEGIES) if s.name == name)
    calls = pools(strategy.sizes[-1]).run(count_calls, index)[0]
    assert sorted(calls) == sorted(("allreduce", size) for size in BYTES[name])


def count_calls_with_partial_gradients():
    """Of AdamP and of torch's AdamW, which has nothing to decide."""
    strategy = next(s for s in STRATEGIES if s.name == "tensor and sequence parallel")
    return [_calls(Pair(strategy, partial(cls, lr=1e-3))) for cls in (AdamP, torch.optim.AdamW)]


def test_gradients_that_dtensor_left_in_parts_are_summed_once(pool):
    ours, torchs = pool.run(count_calls_with_partial_gradients)[0]
    # Weight and bias of the norm, 9 floats each; AdamW has DTensor sum each of them three times.
    sums = [call for call in ours if call[0] == "all_reduce"]
    assert sums == [("all_reduce", 9 * FLOAT)] * 2
    assert len(torchs) > len(sums)
    assert sorted(set(ours) - set(sums)) == [
        ("allreduce", 2 * PER_WEIGHT),
        ("allreduce", 9 * PER_ROW),
    ]


def count_placed(placements, size, dtype):
    mesh = init_device_mesh("cpu", (size, 1))
    weights = list(make_weights(dtype).values())
    optimizer = AdamP(shard_weights(weights, mesh, placements), lr=1e-3)
    set_sharded_grads(optimizer.param_groups[0]["params"], make_grads(weights, "mix", 0))
    with CountedCollectives() as counted:
        optimizer.step()
    return counted.calls


@pytest.mark.parametrize("placements", [[Replicate(), Shard(0)], [Replicate(), Replicate()]])
def test_whole_weights_say_nothing(pool, placements):
    assert pool.run(count_placed, placements, 2, torch.float32) == [[], []]


def test_half_precision_weights_are_added_up_in_float32(pool):
    single, half = (
        pool.run(count_placed, [Shard(0), Replicate()], 2, dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert half == single
    assert len(single[0]) == 1
