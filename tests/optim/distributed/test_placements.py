"""Every placement of every kind of weight gives the single process's weights and state.

Gradients are handed out, so that the test fires as told.

30 s of processor time on the machine they were written on.
"""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard

from tests.declarations import DECLARED, groups_of
from tests.optim.distributed.sharded import (
    assert_parts_close,
    set_sharded_grads,
    shard_weights,
)
from tests.tables.optimizer_options import FAMILIES
from tests.training import set_grads
from tests.weights import SHAPES, make_grads, make_weights

PLACEMENTS = {
    2: {
        "rows": ((2,), [Shard(0)]),
        "columns": ((2,), [Shard(1)]),
        "replicate": ((2,), [Replicate()]),
        "mesh-of-one": ((2, 1), [Shard(0), Shard(1)]),
    },
    3: {
        "rows": ((3,), [Shard(0)]),
        "columns": ((3,), [Shard(1)]),
        "last": ((3,), [Shard(4)]),
    },
    4: {
        "rows": ((4,), [Shard(0)]),
        "columns": ((4,), [Shard(1)]),
        "replicate-rows": ((2, 2), [Replicate(), Shard(0)]),
        "replicate-columns": ((2, 2), [Replicate(), Shard(1)]),
        "rows-replicate": ((2, 2), [Shard(0), Replicate()]),
        "rows-rows": ((2, 2), [Shard(0), Shard(0)]),
        "rows-columns": ((2, 2), [Shard(0), Shard(1)]),
        "columns-rows": ((2, 2), [Shard(1), Shard(0)]),
        "columns-columns": ((2, 2), [Shard(1), Shard(1)]),
        "columns-last": ((2, 2), [Shard(1), Shard(4)]),
    },
}
FLAGS = {
    "default": {},
    "foreach": {"foreach": True},
    "single_tensor": {"foreach": False},
}
OPTIONS = {
    "AdamP": {"weight_decay": 0.1, "nesterov": True},
    "SGDP": {"weight_decay": 0.02, "momentum": 0.8, "nesterov": True},
}
CASES = [(size, name) for size, cases in PLACEMENTS.items() for name in cases]


def check_placement(size, case, family_index, flags, dtype):
    mesh_shape, placements = PLACEMENTS[size][case]
    mesh = init_device_mesh("cpu", mesh_shape)
    family = FAMILIES[family_index]
    weights = list(make_weights(dtype).values())
    sharded = shard_weights(weights, mesh, placements)
    options = {**family.base, **OPTIONS[family.name], **flags}
    expected, actual = family.cls(weights, **options), family.cls(sharded, **options)
    for step in range(4):
        # Each view twice in a row, then another: what the native path guesses is right, then wrong.
        grads = make_grads(weights, "mix", step // 2, seed=1 + step)
        set_grads(weights, grads)
        set_sharded_grads(sharded, grads)
        expected.step()
        actual.step()
        assert_parts_close(family, actual, expected, names=SHAPES, step=step)


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize(("size", "case"), CASES)
def test_placement_matches_single_process(pools, size, case, family, flags):
    index = FAMILIES.index(family)
    pools(size).run(check_placement, size, case, index, FLAGS[flags], torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", ["rows", "columns"])
def test_placement_of_dtype_matches_single_process(pools, case, dtype):
    pools(3).run(check_placement, 3, case, 0, {}, dtype)


def check_declared(size, case, family_index, flags):
    mesh_shape, placements = PLACEMENTS[size][case]
    mesh = init_device_mesh("cpu", mesh_shape)
    family = FAMILIES[family_index]
    weights = make_weights(names=list(DECLARED))
    sharded = dict(zip(DECLARED, shard_weights(weights.values(), mesh, placements), strict=True))
    options = {**family.base, **OPTIONS[family.name], **flags}
    expected = family.cls(groups_of(weights), **options)
    actual = family.cls(groups_of(sharded), **options)
    expected.record_steps = actual.record_steps = True
    for step in range(4):
        grads = make_grads(weights.values(), "mix", step)
        if step == 2:
            # On one process; the others have to hear of it.
            grads[0][-1, -1] = torch.nan
        set_grads(list(weights.values()), grads)
        set_sharded_grads(list(sharded.values()), grads)
        expected.step()
        actual.step()
        assert_parts_close(family, actual, expected, names=DECLARED, step=step)
        assert _views(actual) == _views(expected)


def _views(optimizer):
    return sorted(view for record in optimizer.last_step for view in record.view.tolist())


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize(("size", "case"), CASES)
def test_declared_heads_split_between_processes_match_single_process(
    pools, size, case, family, flags
):
    """Over 3 and 4 processes some heads' rows are not all on one."""
    pools(size).run(check_declared, size, case, FAMILIES.index(family), FLAGS[flags])
