"""Kernels that work on raw memory: what they must refuse, and what torch sees to by itself."""

import contextlib
import gc
import weakref

import pytest
import torch
from torch import nn

from hf_adamp.optim import adamp
from tests.tables.optimizer_options import families_and_paths
from tests.tolerances import assert_close
from tests.training import assert_same, build, run_steps, snapshot
from tests.weights import generator, make_grad, make_grads, make_weights

TRUSTING = pytest.mark.parametrize(
    ("family", "path"), families_and_paths(lambda f, p: p.fused or p.name == "default")
)
KWARGS = {"AdamP": {"weight_decay": 0.1}, "SGDP": {"momentum": 0.9}}


def started(family, path, weight, **kwargs):
    optimizer = build(family, [weight], path, **{**KWARGS[family.name], **kwargs})
    run_steps(optimizer, [make_grads([weight], "channel", 1)])
    return optimizer


@pytest.mark.parametrize(("family", "path"), families_and_paths())
def test_moments_of_another_dtype_are_refused_or_right(family, path):
    """`model.float()` leaves the moments of a float64 model as they are."""
    weight = nn.Parameter(torch.randn(6, 5, dtype=torch.float64, device=path.device))
    optimizer = build(family, [weight], **KWARGS[family.name])
    run_steps(optimizer, [make_grads([weight], "channel", 1)])
    weight.data = weight.data.float()
    weight.grad = None
    kwargs = {**family.base, **KWARGS[family.name]}
    expected = family.reference([weight], **kwargs)
    expected.state = [
        {k: int(v) if k == "step" else v.cpu() for k, v in state.items()}
        for state in snapshot(optimizer)[1]
    ]
    optimizer.param_groups[0].update(path.flags)
    grads = make_grads([weight], "channel", 2)
    try:
        run_steps(optimizer, [grads])
    except RuntimeError:
        return
    expected.step(grads)
    assert_close(weight, expected.weights[0])


def test_functional_form_with_half_precision_moments_keeps_to_their_memory():
    weight = torch.randn(6, 5)
    storage = torch.full((3, 30), 7.0, dtype=torch.bfloat16)
    guard, moments = storage[1:].clone(), storage[0].view(6, 5)
    moments.zero_()
    kwargs = {
        "beta1": 0.9,
        "beta2": 0.99,
        "lr": 1e-2,
        "weight_decay": 0.0,
        "eps": 1e-8,
        "delta": 0.1,
        "wd_ratio": 0.1,
        "nesterov": False,
        "maximize": False,
    }
    with contextlib.suppress(RuntimeError):
        adamp(
            [weight],
            [torch.randn(6, 5)],
            [moments],
            [torch.zeros(6, 5, dtype=torch.bfloat16)],
            [torch.zeros(())],
            **kwargs,
        )
    assert torch.equal(storage[1:], guard)


@pytest.mark.parametrize(("family", "path"), families_and_paths())
def test_moments_of_another_shape_raise_as_in_torch(family, path):
    """Such as after `embedding.weight.data = larger`; the strides of both are alike."""
    weight = nn.Parameter(torch.randn(6, 5, device=path.device))
    optimizer = started(family, path, weight)
    weight.grad = None
    weight.data = torch.randn(4000, 5, device=path.device)
    weight.grad = torch.randn_like(weight)
    before = weight.detach().clone()
    with pytest.raises((RuntimeError, ValueError)):
        optimizer.step()
    assert torch.equal(weight, before)


class Wrapped(nn.Parameter):
    """A weight of another class, which may keep its memory elsewhere, as DTensor does."""


@TRUSTING
def test_weights_of_another_class_are_not_read_by_address(family, path, monkeypatch):
    plain, other = (cls(torch.randn(6, 5, device=path.device)) for cls in (nn.Parameter, Wrapped))
    assert type(other) is Wrapped
    monkeypatch.setattr(
        Wrapped, "data_ptr", lambda _: pytest.fail("read by address"), raising=False
    )
    optimizer = build(family, [plain, other], path)
    try:
        run_steps(optimizer, [make_grads([plain, other], "channel", 1)])
    except RuntimeError as error:
        assert "Wrapped" in str(error)  # noqa: PT017 - raising is one of two right outcomes


@pytest.mark.parametrize(("family", "path"), families_and_paths())
def test_step_is_seen_by_autograd(family, path):
    """A second backward pass through weights that have changed must raise, not be wrong."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).to(path.device)
    optimizer = build(family, model.parameters(), path, **KWARGS[family.name])
    versions = [param._version for param in model.parameters()]
    loss = model(torch.randn(3, 4, device=path.device)).sum()
    loss.backward(retain_graph=True)
    for param in model.parameters():
        param.grad = param.grad.contiguous()  # a sum's are expanded
    optimizer.step()
    assert all(p._version > v for p, v in zip(model.parameters(), versions, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("lazy_step", [1, 2])
@pytest.mark.parametrize(("family", "path"), families_and_paths(lambda f, p: not p.dense_only))
def test_lazily_negated_gradients_are_read_negated(family, path, lazy_step):
    """Also where the step before has shown plain ones."""
    results = []
    for lazy in (lazy_step, None):
        weight = make_weights(names=["linear"], device=path.device)["linear"]
        optimizer = build(family, [weight], path, **KWARGS[family.name])
        for step in (1, 2):
            grad = make_grad(make_weights()["linear"], "channel", generator(step))
            grad = grad.to(path.device)
            weight.grad = torch._neg_view(-grad) if step == lazy else grad
            optimizer.step()
        results.append(snapshot(optimizer))
    assert_same(family, *results, names=["linear"])


@pytest.mark.parametrize(("family", "path"), families_and_paths())
def test_gradients_are_let_go_after_a_step(family, path):
    """What is remembered from step to step must not keep a model's size of memory."""
    weights = make_weights(device=path.device)
    optimizer = build(family, weights, path, **KWARGS[family.name])
    for step in range(1, 4):
        run_steps(optimizer, [make_grads(weights.values(), "mix", step)])
        grads = [weakref.ref(weight.grad) for weight in weights.values()]
        optimizer.zero_grad(set_to_none=True)
        gc.collect()
        assert not any(grad() is not None for grad in grads), f"step {step}"


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4, 1e-6, 1e-9])
@pytest.mark.parametrize(("family", "path"), families_and_paths())
def test_weight_smaller_than_its_step_is_projected_precisely(family, path, scale):
    """The view flips, and momentum along the weight is many times its length."""
    weight = nn.Parameter(make_weights(names=["conv2d"], device=path.device)["conv2d"].detach())
    kwargs = {**family.base, **KWARGS[family.name], "lr": 0.05}
    optimizer = build(family, [weight], path, **kwargs)
    grads = [make_grad(weight, "radial", generator(s)) for s in (1, 2)]
    run_steps(optimizer, [[grad] for grad in grads])
    with torch.no_grad():
        weight.mul_(scale)
    reference = family.reference([weight], **kwargs)
    reference.state = [
        {k: int(v) if k == "step" else v.cpu().double() for k, v in state.items()}
        for state in snapshot(optimizer)[1]
    ]
    grads = make_grads([weight], "channel", 3)
    reference.step(grads)
    run_steps(optimizer, [grads])
    assert reference.views == [1]
    # Of the size of the step, however small the weight.
    assert_close(weight, reference.weights[0])
