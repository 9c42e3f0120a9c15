"""Tensors whose numbers lie elsewhere: what torch.func wraps, what a mode fakes or watches."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, vmap
from torch.utils.flop_counter import FlopCounterMode

from hf_adamp import adamp, sgdp
from tests.tables.optimizer_options import FAMILIES
from tests.training import assert_identical, build, run_steps, snapshot
from tests.weights import generator, make_grads, make_weights

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
SHARED = {"weight_decay": 0.1, "eps": 1e-8, "maximize": False, "nesterov": False}
FLAGS = [{}, {"foreach": False}, {"differentiable": True}]


def step(name, weight, gradient, **flags):
    """One step from the start of a weight, out of place."""
    weight, options = weight.clone(), {**SHARED, **flags, "delta": 0.1, "wd_ratio": 0.1}
    zeros = [torch.zeros_like(weight)]
    if name == "AdamP":
        count = [torch.tensor(0.0)]
        squares = [torch.zeros_like(weight)]
        adamp([weight], [gradient], zeros, squares, count, lr=0.1, beta1=0.9, beta2=0.99, **options)
    else:
        sgdp([weight], [gradient], zeros, lr=0.1, momentum=0.9, dampening=0.0, **options)
    return weight


def inputs():
    """Weights and gradients of four models; those of the first two are orthogonal."""
    draw = generator(0)
    weights, grads = (torch.randn(4, 6, 5, generator=draw) for _ in range(2))
    along = (weights * grads).sum(2, keepdim=True) / (weights * weights).sum(2, keepdim=True)
    grads[:2] -= (along * weights)[:2]
    return weights, grads


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@EVERY_FAMILY
def test_vmap_over_models_is_a_step_of_each(family, flags):
    weights, grads = inputs()
    together = vmap(lambda w, g: step(family.name, w, g, **flags))(weights, grads)
    apart = [step(family.name, w, g, foreach=False) for w, g in zip(weights, grads, strict=True)]
    torch.testing.assert_close(together, torch.stack(apart), rtol=1e-6, atol=1e-6)


@EVERY_FAMILY
def test_multi_tensor_operations_are_refused_under_vmap(family):
    with pytest.raises(RuntimeError, match=r"cannot be batched by torch\.func"):
        vmap(lambda w, g: step(family.name, w, g, foreach=True))(*inputs())


@EVERY_FAMILY
def test_gradient_through_a_step_is_that_of_autograd(family):
    weights, grads = (tensor[0].double() for tensor in inputs())

    def loss(gradient):
        return step(family.name, weights, gradient, differentiable=True).square().sum()

    through = grad(loss)(grads)
    leaf = grads.clone().requires_grad_()
    loss(leaf).backward()
    torch.testing.assert_close(through, leaf.grad)
    assert through.abs().sum() > 0


@EVERY_FAMILY
def test_dry_run_with_fake_tensors(family):
    with FakeTensorMode():
        layer = nn.Linear(8, 8)
        optimizer = build(family, layer.parameters())
        for _ in range(2):
            layer(torch.ones(2, 8)).sum().backward()
            optimizer.step()


@EVERY_FAMILY
def test_mode_that_watches_operations_changes_no_number(family):
    """And comes and goes between steps."""
    snapshots = []
    for mode in (FlopCounterMode, None):
        weights = make_weights()
        optimizer = build(family, weights, foreach=True)
        for index in range(3):
            gradients = make_grads(weights.values(), "mix", index)
            if mode is not None and index == 1:
                with mode(display=False):
                    run_steps(optimizer, [gradients])
            else:
                run_steps(optimizer, [gradients])
        snapshots.append(snapshot(optimizer))
    assert_identical(*snapshots)


@EVERY_FAMILY
def test_mode_is_not_passed_by(family):
    """A kernel that works on addresses would do what no mode sees."""
    weights = make_weights(names=["linear"])
    optimizer = build(family, weights)
    with FlopCounterMode(display=False):
        run_steps(optimizer, [make_grads(weights.values(), "channel", 0)])
        assert type(optimizer._plans[()]._sections[0].prepared).__name__ == "ForeachSection"
