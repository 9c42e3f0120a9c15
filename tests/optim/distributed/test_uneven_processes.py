"""Processes that differ in what they have still take the same steps, and none waits in vain.

A collective that some process does not reach fails after a minute, and the test with it.

15 s of processor time on the machine they were written on.
"""

from functools import partial

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from hf_adamp import AdamP
from hf_adamp.optim.backends.cpu import library
from tests.optim.distributed.sharded import (
    assert_parts_close,
    set_sharded_grads,
    shard,
    shard_weights,
)
from tests.tables.optimizer_options import ADAMP
from tests.training import params_of, set_grads
from tests.weights import SHAPES, generator, make_grads, make_weights

OPTIONS = {"lr": 1e-2, "weight_decay": 0.1}
DIMS = [0, 1]


class _Run:
    """The same weights whole and sharded, with an optimizer each, and gradients for both."""

    def __init__(self, dim, names=None, **options):
        mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
        self.names = list(SHAPES) if names is None else names
        self.weights = list(make_weights(names=names).values())
        self.sharded = shard_weights(self.weights, mesh, [Shard(dim)])
        self.single_optimizer = AdamP(self.weights, **OPTIONS, **options)
        self.optimizer = AdamP(self.sharded, **OPTIONS, **options)

    def set_grads(self, step, change=lambda grads: grads):
        grads = change(make_grads(self.weights, "mix", step))
        set_grads(self.weights, grads)
        set_sharded_grads(self.sharded, grads)

    def step(self, step):
        self.single_optimizer.step()
        self.optimizer.step()
        self.assert_close(step)

    def assert_close(self, step):
        optimizers = self.optimizer, self.single_optimizer
        assert_parts_close(ADAMP, *optimizers, names=self.names, step=step)


def check_missing_gradients(dim):
    run = _Run(dim)
    before = [param.to_local().clone() for param in run.sharded]
    run.set_grads(0)
    if distributed.get_rank() == 1:
        run.optimizer.zero_grad()
    run.optimizer.step()
    changed = [
        not torch.equal(param.to_local(), old)
        for param, old in zip(run.sharded, before, strict=True)
    ]
    has_part = [old.numel() > 0 for old in before]
    assert changed == ([False] * len(before) if distributed.get_rank() == 1 else has_part)
    # And the next step meets again.
    run.set_grads(1)
    run.optimizer.step()
    assert all(param.to_local().isfinite().all() for param in run.sharded)


@pytest.mark.parametrize("dim", DIMS)
def test_one_process_without_gradients_keeps_its_rows(pools, dim):
    pools(3).run(check_missing_gradients, dim)


def _without_every_third(grads, begin):
    return [None if (i + begin) % 3 == 0 else grad for i, grad in enumerate(grads)]


def check_unused_weights(dim):
    run = _Run(dim)
    for step in range(3):
        run.set_grads(step, partial(_without_every_third, begin=step))
        run.step(step)
    run.set_grads(3, lambda grads: [None] * len(grads))
    run.step(3)


@pytest.mark.parametrize("dim", DIMS)
def test_weights_without_gradient_match_single_process(pools, dim):
    pools(3).run(check_unused_weights, dim)


def check_not_finite(dim, value):
    run = _Run(dim)

    def spoil(grads):
        for grad in grads:
            if grad.ndim > 1 and grad.numel():
                grad[-1, -1] = value  # one row, on one process
        return grads

    for step in range(3):
        run.set_grads(step, spoil if step == 1 else lambda grads: grads)
        run.step(step)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dim", DIMS)
def test_gradient_not_finite_on_one_process_matches_single_process(pools, dim, value):
    pools(3).run(check_not_finite, dim, value)


def check_empty_processes(dim):
    run = _Run(dim, ["one_row", "one_element", "rows_of_one"])
    assert any(param.to_local().numel() == 0 for param in run.sharded) == (
        distributed.get_rank() > 0
    )
    for step in range(3):
        run.set_grads(step)
        run.step(step)


@pytest.mark.parametrize("dim", DIMS)
def test_processes_with_empty_shards_match_single_process(pools, dim):
    pools(3).run(check_empty_processes, dim)


def check_records(dim):
    run = _Run(dim)
    rank = distributed.get_rank()
    run.optimizer.record_steps = rank == 1
    run.single_optimizer.record_steps = True
    for step in range(3):
        run.set_grads(step)
        before = [param.to_local().detach().clone() for param in run.sharded]
        run.step(step)
    assert bool(run.optimizer.last_step) == (rank == 1)
    if rank == 1:
        views, cosines = _recorded(run.optimizer, "view"), _recorded(run.optimizer, "max_cosine")
        moved = _recorded(run.optimizer, "update_norm")
        for old, param in zip(before, run.sharded, strict=True):
            if id(param) in moved and dim == 0:
                norm = (param.to_local().detach() - old).norm().item()
                assert moved[id(param)] == pytest.approx(norm, rel=2e-3, abs=1e-6)
        every = _recorded(run.single_optimizer, "view")
        of_whole = _recorded(run.single_optimizer, "max_cosine")
        assert len(every) == len(views) > 8
        for name, weight, param in zip(run.names, run.weights, run.sharded, strict=True):
            if id(weight) not in every:
                continue
            # The view is everybody's; the other numbers are of the rows that are here.
            assert views[id(param)] == every[id(weight)], name
            assert cosines[id(param)] <= of_whole[id(weight)] * 1.001 + 1e-6, name
            assert dim == 1 or param.to_local().shape[0] or cosines[id(param)] == 0, name


def _recorded(optimizer, column):
    """A column of the records, by the identity of the weights that the optimizer was given."""
    return {
        id(param): value
        for record in optimizer.last_step
        for param, value in zip(record.params, getattr(record, column).tolist(), strict=True)
    }


@pytest.mark.parametrize("dim", DIMS)
def test_one_process_that_records_matches_single_process(pools, dim):
    pools(3).run(check_records, dim)


def check_different_backends(dim):
    run = _Run(dim)
    if distributed.get_rank() == 0:
        # As where there was no C compiler; and it saves its state on its own.
        run.optimizer.param_groups[0]["foreach"] = False
    for step in range(3):
        run.set_grads(step)
        if distributed.get_rank() == 0:
            run.optimizer.state_dict()
        run.step(step)


@pytest.mark.parametrize("dim", DIMS)
def test_processes_with_other_backends_match_single_process(pools, dim):
    pools(3).run(check_different_backends, dim)


def check_mixture():
    """Sharded over meshes of three kinds and whole, in any order, in groups with own options."""
    flat = init_device_mesh("cpu", (4,))
    nested = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    ways = [
        None,
        (flat, [Shard(0)]),
        (nested, [Shard(1), Shard(0)]),
        (nested["inner"], [Shard(1)]),
        (nested["outer"], [Shard(0)]),
        (flat, [Replicate()]),
    ]
    weights = [*make_weights().values(), *make_weights(torch.float64, seed=1).values()]
    mixed = [
        nn.Parameter(shard(weight, *way) if (way := ways[index % len(ways)]) else weight.clone())
        for index, weight in enumerate(weights)
    ]

    def make(params):
        return AdamP(
            [
                {"params": params[:10], "weight_decay": 0.3, "delta": 0.0},
                {"params": params[10:20], "betas": (0.5, 0.9)},
                {"params": params[20:], "nesterov": True, "eps": 1e-6},
            ],
            lr=1e-2,
        )

    single_optimizer, optimizer = make(weights), make(mixed)
    for step in range(3):
        grads = make_grads(weights, "mix", step)
        set_grads(weights, grads)
        set_sharded_grads(mixed, grads)
        single_optimizer.step()
        optimizer.step()
        names = [f"{name} ({i})" for i in range(2) for name in SHAPES]
        assert_parts_close(ADAMP, optimizer, single_optimizer, names=names, step=step)


def test_meshes_and_whole_weights_mixed_match_single_process(pools):
    pools(4).run(check_mixture)


def check_mesh_of_some():
    """The third process is not part of the first weight's mesh."""
    some = DeviceMesh("cpu", [0, 1])
    every = DeviceMesh("cpu", [0, 1, 2])
    weights = list(make_weights(names=["linear", "embedding"]).values())
    first, second = (
        nn.Parameter(
            DTensor.from_local(_rows(w, mesh), mesh, [Shard(0)], shape=w.shape, stride=w.stride())
        )
        for w, mesh in zip(weights, (some, every), strict=True)
    )
    optimizer, single = AdamP([first, second], **OPTIONS), AdamP(weights, **OPTIONS)
    for step in range(3):
        grads = make_grads(weights, "mix", step)
        set_grads(weights, grads)
        set_sharded_grads([second], grads[1:])
        if distributed.get_rank() < 2:
            set_sharded_grads([first], grads[:1])
        optimizer.step()
        single.step()
    for param, weight in ((first, weights[0]), (second, weights[1])):
        if param.device_mesh.get_coordinate() is not None:
            expected = _rows(weight, param.device_mesh)
            torch.testing.assert_close(param.to_local(), expected.detach())


def _rows(weight, mesh):
    coordinate = mesh.get_coordinate()
    if coordinate is None:
        return weight[:0]
    parts = weight.chunk(mesh.size())
    return parts[coordinate[0]] if coordinate[0] < len(parts) else weight[:0]


def test_weight_on_other_processes_is_left_to_them(pools):
    pools(3).run(check_mesh_of_some)


def check_partial(shape):
    mesh = init_device_mesh("cpu", (2,))
    partial = DTensor.from_local(torch.ones(shape), mesh, [Partial()])
    optimizer = AdamP([nn.Parameter(torch.ones(2, 2))], lr=0.1)
    with pytest.raises(RuntimeError, match=r"Partial.*redistribute it to Replicate\(\) or Shard"):
        optimizer.add_param_group({"params": [nn.Parameter(partial)]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("shape", [(4, 3), (4,)])
def test_partial_weight_is_refused(pool, shape):
    pool.run(check_partial, shape)


def check_fused():
    run = _Run(0, ["linear"], fused=True)
    run.set_grads(0)
    run.step(0)


@pytest.mark.skipif(library.load()[0] is None, reason="needs the native kernel")
def test_fused_serves_shards(pool):
    pool.run(check_fused)


def check_later_group(dim):
    run = _Run(dim)
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for step in range(4):
        if step == 2:
            weight = nn.Parameter(torch.randn(5, 4, generator=generator(5)))
            part = shard_weights([weight], mesh, [Shard(dim)])
            run.single_optimizer.add_param_group({"params": [weight], "delta": 0.5})
            run.optimizer.add_param_group({"params": part, "delta": 0.5})
            run.weights, run.sharded = params_of(run.single_optimizer), params_of(run.optimizer)
            run.names = [*run.names, "later"]
        run.set_grads(step)
        run.step(step)


@pytest.mark.parametrize("dim", DIMS)
def test_group_added_later_matches_single_process(pools, dim):
    pools(3).run(check_later_group, dim)
