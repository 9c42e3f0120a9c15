"""What users do between steps: whatever a step keeps for the next one must not outlive it."""

import copy
import gc
import pickle
import random
import weakref

import pytest
import torch
from torch import nn

from tests.tables.optimizer_options import FAMILIES
from tests.tolerances import assert_close
from tests.training import assert_identical, params_of, set_grads, snapshot
from tests.weights import generator

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
SHAPES = [(8, 8), (64, 64), (16, 4, 3, 3), (7,), (64, 64), (3, 5)]


class Run:
    """An optimizer and the plain path beside it, which are treated alike."""

    def __init__(self, family, seed, dtype):
        self.random = random.Random(seed)
        draw = generator(seed)
        self.family = family
        self.optimizers = []
        weights = [torch.randn(shape, generator=draw).to(dtype) for shape in SHAPES]
        for flags in ({}, {"foreach": False}):
            params = [nn.Parameter(weight.clone()) for weight in weights]
            groups = [{"params": params[:4]}, {"params": params[4:]}]
            self.optimizers.append(family.cls(groups, **{**family.base, "lr": 1e-2}, **flags))

    def step(self, seed):
        """Step both, compare, and let both go on from the same numbers."""
        draw = generator(seed)
        ours, plain = map(params_of, self.optimizers)
        grads = [torch.randn(param.shape, generator=draw) for param in ours]
        for index in range(len(grads)):
            if self.random.random() < 0.1:
                grads[index] = None
        for params, optimizer in zip((ours, plain), self.optimizers, strict=True):
            set_grads(params, grads)
            optimizer.step()
        for index, (param, other) in enumerate(zip(ours, plain, strict=True)):
            assert_close(param, other, what=f"weight {index}")
            with torch.no_grad():
                param.copy_(other)
            for key in self.family.moments:
                state, wanted = (
                    optimizer.state.get(p, {}).get(key)
                    for optimizer, p in zip(self.optimizers, (param, other), strict=True)
                )
                assert (state is None) == (wanted is None)
                if state is not None:
                    assert_close(state, wanted, what=f"{key} of weight {index}")
                    state.copy_(wanted)

    def change(self):
        """Do one thing to both."""
        what = self.random.choice(CHANGES)
        index = self.random.randrange(len(SHAPES))
        self.optimizers = [what(o, params_of(o)[index]) for o in self.optimizers]
        return what.__name__


def move(optimizer, weight):
    weight.data = weight.data.clone()
    return optimizer


def transpose_in_place(optimizer, weight):
    """Another weight at the same address, if it is square."""
    if weight.ndim == 2 and weight.shape[0] == weight.shape[1]:
        weight.data = weight.data.t()
    return optimizer


def change_precision(optimizer, weight):
    """As `layer.bfloat16()` on a part of a model."""
    weight.grad = None
    narrow = weight.dtype == torch.float32
    weight.data = weight.data.to(torch.bfloat16 if narrow else torch.float32)
    return optimizer


def replace_state(optimizer, weight):
    state = optimizer.state[weight]
    for key in state:
        state[key] = state[key].clone()
    return optimizer


def forget_state(optimizer, weight):
    optimizer.state.pop(weight, None)
    return optimizer


def reload(optimizer, weight):
    del weight
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return optimizer


def through_a_copy(optimizer, weight):
    del weight
    return copy.deepcopy(optimizer)


def through_a_pickle(optimizer, weight):
    del weight
    return pickle.loads(pickle.dumps(optimizer))


def exchange_groups(optimizer, weight):
    del weight
    optimizer.param_groups.reverse()
    optimizer.param_groups[0]["weight_decay"] = 0.05
    return optimizer


def freeze_or_thaw(optimizer, weight):
    weight.requires_grad_(not weight.requires_grad)
    return optimizer


def swap_tensors(optimizer, weight):
    """As `module.to` does it where torch is told to swap."""
    grad, weight.grad = weight.grad, None
    torch.utils.swap_tensors(weight, nn.Parameter(weight.detach() * 1.5))
    weight.grad = grad
    return optimizer


def change_options(optimizer, weight):
    del weight
    group = optimizer.param_groups[0]
    group["delta"] = 0.3 - group["delta"]
    group["lr"] *= 1.1
    group["eps"] = 1e-7
    group["nesterov"] = "betas" in group and not group["nesterov"]
    group["maximize"] = not group["maximize"]
    return optimizer


def declare(optimizer, weight):
    del weight
    group = optimizer.param_groups[-1]
    group["scale_invariant"] = "row" if group["scale_invariant"] == "auto" else "auto"
    return optimizer


def move_to_another_group(optimizer, weight):
    for group in optimizer.param_groups:
        group["params"] = [param for param in group["params"] if param is not weight]
    optimizer.param_groups[0]["params"].append(weight)
    return optimizer


def change_memory_format(optimizer, weight):
    if weight.ndim == 4:
        is_last = weight.is_contiguous(memory_format=torch.channels_last)
        wanted = torch.contiguous_format if is_last else torch.channels_last
        weight.data = weight.data.contiguous(memory_format=wanted)
    return optimizer


CHANGES = [
    *(freeze_or_thaw, swap_tensors, change_options, declare, change_memory_format),
    *(move, transpose_in_place, change_precision, change_precision, replace_state),
    *(forget_state, reload, through_a_copy, through_a_pickle, exchange_groups),
]


@EVERY_FAMILY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(12))
def test_random_changes_between_steps_are_noticed(family, dtype, seed):
    run = Run(family, seed, dtype)
    done = []
    for step in range(12):
        run.step(100 * seed + step)
        done += [run.change() for _ in range(run.random.randrange(3))]
    assert done


@EVERY_FAMILY
def test_weight_that_is_transposed_in_place_is_noticed(family):
    """It lies where it lay, has the shape that it had, and is another weight."""
    run = Run(family, 0, torch.float32)
    for step in range(4):
        run.step(step)
        run.optimizers = [transpose_in_place(o, params_of(o)[0]) for o in run.optimizers]


@EVERY_FAMILY
def test_weights_of_a_mixed_group_may_change_precision(family):
    """Among other precisions, where the group has the same ones before and after."""
    run = Run(family, 0, torch.float32)
    for index in (0, 1, 0, 2, 1):
        run.optimizers = [change_precision(o, params_of(o)[index]) for o in run.optimizers]
        run.step(index)
        run.step(10 + index)


@EVERY_FAMILY
def test_weights_of_a_removed_group_are_let_go(family):
    kept, removed = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3))
    optimizer = family.cls([{"params": [kept]}, {"params": [removed]}], **family.base)
    for weight in (kept, removed):
        weight.grad = torch.ones(3, 3)
    optimizer.step()
    optimizer.param_groups.pop()
    optimizer.state.pop(removed, None)
    optimizer.step()
    alive = weakref.ref(removed)
    del removed, weight
    gc.collect()
    assert alive() is None


@EVERY_FAMILY
def test_weight_that_moves_to_another_group_keeps_its_state(family):
    run = Run(family, 0, torch.float32)
    for index in (0, 1, 5):
        run.step(index)
        run.optimizers = [move_to_another_group(o, params_of(o)[index]) for o in run.optimizers]
    run.step(9)


@EVERY_FAMILY
def test_gradients_may_be_views_of_one_buffer(family):
    """As DDP's buckets and flat gradient buffers have them."""
    snapshots = []
    for joined in (True, False):
        draw = generator(0)
        weights = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]
        buffer = torch.empty(sum(weight.numel() for weight in weights))
        optimizer = family.cls(weights, **{**family.base, "lr": 1e-2})
        for _ in range(3):
            buffer.copy_(torch.randn(buffer.shape, generator=draw))
            for weight, part in zip(
                weights, buffer.split([w.numel() for w in weights]), strict=True
            ):
                weight.grad = part.view(weight.shape) if joined else part.clone().view(weight.shape)
            optimizer.step()
        snapshots.append(snapshot(optimizer))
    assert_identical(*snapshots)


@EVERY_FAMILY
def test_two_optimizers_may_step_one_weight(family):
    """By turns, each with state of its own."""
    results = []
    for flags in ({}, {"foreach": False}):
        weight = nn.Parameter(torch.randn(64, 64, generator=generator(0)))
        pair = [family.cls([weight], **{**family.base, "lr": lr}, **flags) for lr in (1e-2, 3e-3)]
        for step in range(6):
            weight.grad = torch.randn(64, 64, generator=generator(step))
            pair[step % 2].step()
        results.append(weight)
    assert_close(*results)
