"""`differentiable=True`: autograd follows steps, checked against finite differences."""

import pytest
import torch
from torch.autograd import gradcheck

from tests.tables.optimizer_options import FAMILIES, GOOD
from tests.training import build, run_steps, snapshot
from tests.weights import generator, make_grad, make_weights

CASES = [
    pytest.param(family, good.kwargs, kind, id=f"{family.name}-{good.name}-{kind}")
    for family in FAMILIES
    for good in GOOD[family.name]
    for kind in ("channel", "layer", "radial")
]
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)


def steps_as_function(family, kwargs, kind, shape=(2, 3)):
    """Two steps as a function of weight, gradient and moments."""
    draw = generator(0)
    weight = torch.randn(shape, dtype=torch.float64, generator=draw)
    # Within the projected region and away from its border, where the step is smooth.
    grad = make_grad(weight, kind, draw)
    moments = [torch.rand(shape, dtype=torch.float64, generator=draw) + 0.1]
    if "exp_avg_sq" in family.moments:
        moments.append(torch.rand(shape, dtype=torch.float64, generator=draw) + 0.1)
    if family.name == "SGDP" and not kwargs.get("momentum"):
        moments = []

    def function(weight, grad, *moments):
        # Not leaves, as when one optimizer's step is part of another's loss.
        weight = weight.clone()
        optimizer = family.cls(
            [weight.detach().requires_grad_()], differentiable=True, **{**family.base, **kwargs}
        )
        optimizer.param_groups[0]["params"] = [weight]
        weight.grad = grad
        state = dict(zip(family.moments, (m.clone() for m in moments), strict=False))
        if "exp_avg_sq" in family.moments:
            state["step"] = torch.tensor(3.0, dtype=torch.float64)
        if state:
            optimizer.state[weight].update(state)
        optimizer.step()
        optimizer.step()
        return (weight, *(optimizer.state[weight][key] for key in state if key != "step"))

    return function, [t.requires_grad_() for t in (weight, grad, *moments)]


@pytest.mark.filterwarnings("ignore:.*grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(("family", "kwargs", "kind"), CASES)
def test_gradient_through_steps_equals_finite_differences(family, kwargs, kind):
    function, inputs = steps_as_function(family, kwargs, kind)
    assert gradcheck(function, inputs, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("kind", ["channel", "radial"])
@EVERY_FAMILY
def test_gradient_through_a_step_is_finite_at_a_zero_row(family, kind):
    """`|w|` has no derivative at zero, and a branch not taken must not bring its NaN in."""
    function, inputs = steps_as_function(family, {}, kind)
    with torch.no_grad():
        inputs[0][1].zero_()
    outputs = function(*inputs)
    for gradient in torch.autograd.grad(outputs[0].sum(), inputs, allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


@EVERY_FAMILY
def test_differentiable_step_equals_the_others(family):
    snapshots = []
    for differentiable in (True, False):
        weights = make_weights(torch.float64)
        for weight in weights.values():
            weight.requires_grad_(not differentiable)
        optimizer = build(family, weights, differentiable=differentiable, foreach=False)
        draw = generator(5)
        grads = [[make_grad(w, "channel", draw) for w in make_weights(torch.float64).values()]]
        run_steps(optimizer, grads * 3)
        snapshots.append(snapshot(optimizer))
    for actual, expected in zip(*(s[0] for s in snapshots), strict=True):
        assert torch.equal(actual, expected)


@EVERY_FAMILY
def test_leaf_that_requires_gradients_cannot_be_stepped_through(family):
    """As in torch.optim: its old value would be lost to autograd."""
    weights = make_weights(names=["linear"])
    optimizer = build(family, weights, differentiable=True)
    weights["linear"].grad = torch.randn_like(weights["linear"])
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        optimizer.step()
