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
from tests.training import params_of, set_grads
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


CHANGES = [
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
