"""Dtypes and numbers at the edge: half precision, non-finite gradients, tiny and huge ones."""

import pytest
import torch
from torch import nn

from tests.tables.optimizer_options import (
    ADAMP,
    DTYPES,
    FAMILIES,
    HALVES,
    families_and_paths,
    families_paths_and_dtypes,
)
from tests.tolerances import assert_close
from tests.training import build, run_steps, set_grads, snapshot
from tests.weights import SHAPES, make_grads, make_weights

EVERY_PATH = pytest.mark.parametrize(("family", "path"), families_and_paths())
IN_HALF_PRECISION = pytest.mark.parametrize(
    ("family", "path", "dtype"), families_paths_and_dtypes(HALVES)
)
MOMENTUM = {"AdamP": {}, "SGDP": {"momentum": 0.9}}


@IN_HALF_PRECISION
def test_moments_of_half_precision_weights_are_float32(family, path, dtype):
    weights = make_weights(dtype, device=path.device)
    optimizer = build(family, weights, path, **MOMENTUM[family.name])
    run_steps(optimizer, [make_grads(weights.values(), "channel", 1)])
    for state in optimizer.state.values():
        assert {state[key].dtype for key in family.moments} == {torch.float32}
    assert {weight.dtype for weight in weights.values()} == {dtype}


@pytest.mark.parametrize(("family", "path", "dtype"), families_paths_and_dtypes([torch.float64]))
def test_moments_of_float64_weights_are_float64(family, path, dtype):
    weights = make_weights(dtype, device=path.device)
    optimizer = build(family, weights, path, **MOMENTUM[family.name])
    run_steps(optimizer, [make_grads(weights.values(), "channel", 1)])
    for state in optimizer.state.values():
        assert {state[key].dtype for key in family.moments} == {torch.float64}


@pytest.mark.parametrize("kwargs", [{}, {"weight_decay": 0.1, "nesterov": True}], ids=str)
@IN_HALF_PRECISION
def test_pure_half_precision_stays_finite_for_200_steps_of_tiny_gradients(
    family, path, dtype, kwargs
):
    """Their squares are 0 in float16, and so is eps."""
    weights = make_weights(dtype, device=path.device)
    kwargs = {**MOMENTUM[family.name], **kwargs}
    optimizer = build(family, weights, path, **kwargs)
    for step in range(200):
        grads = make_grads(weights.values(), ("channel", "random")[step % 2], step)
        set_grads(weights.values(), [(1e-6 * grad.float()).to(dtype) for grad in grads])
        optimizer.step()
    for name, weight in weights.items():
        assert weight.isfinite().all(), name
        assert all(optimizer.state[weight][key].isfinite().all() for key in family.moments), name


@pytest.mark.parametrize("kind", ["channel", "layer", "radial"])
@IN_HALF_PRECISION
def test_half_precision_weights_are_rounded_to_the_nearest(family, path, dtype, kind):
    """Truncated weights would pass the tolerance of a unit in the last place, and drift."""
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=draw).to(dtype) for shape in ((50, 60), (3000,))]
    params = [nn.Parameter(weight.to(path.device, copy=True)) for weight in weights]
    optimizer = build(family, params, path, weight_decay=0.1)
    reference = family.reference(weights, **{**family.base, "weight_decay": 0.1})
    for step in (1, 2):
        reference.weights = [param.detach().cpu().double() for param in params]
        grads = make_grads(params, kind, step)
        reference.step(grads)
        run_steps(optimizer, [grads])
        for ours, exact in zip(params, reference.weights, strict=True):
            nearest = exact.to(dtype)
            # All but those that float32's round-off takes over the middle between two numbers.
            assert (ours.detach().cpu() == nearest).double().mean() > 0.99


@pytest.mark.parametrize(("lr", "weight_decay"), [(1e-3, 1e-2), (0.5, 0.7)])
@IN_HALF_PRECISION
def test_decay_in_half_precision_rounds_as_float32_does(family, path, dtype, lr, weight_decay):
    """Far below the resolution of its dtype, or so large that what is left is small."""
    weights = make_weights(dtype, device=path.device, names=["bias", "linear", "scalar"])
    kwargs = {"lr": lr, "weight_decay": weight_decay}
    optimizer = build(family, weights, path, **kwargs)
    for step in range(1, 11):
        expected = family.reference(weights.values(), dtype=torch.float32, storage=dtype, **kwargs)
        expected.state = [
            {k: v.cpu().clone() if k != "step" else int(v) for k, v in state.items()}
            for state in snapshot(optimizer)[1]
        ]
        grads = make_grads(weights.values(), "mix", step)
        expected.step(grads)
        run_steps(optimizer, [grads])
        for ours, theirs in zip(weights.values(), expected.weights, strict=True):
            assert_close(ours, theirs)


@pytest.mark.parametrize(("family", "path"), families_and_paths(lambda f, p: p.dtypes == DTYPES))
def test_dtypes_may_be_mixed_in_a_group(family, path):
    names = ["linear", "bias", "conv2d"]
    mixed = [
        weight
        for name in names
        for dtype in DTYPES
        for weight in make_weights(dtype, device=path.device, names=[name]).values()
    ]
    alone = [nn.Parameter(weight.detach().clone()) for weight in mixed]
    together = build(family, mixed, path)
    apart = [build(family, [weight], path) for weight in alone]
    for step in range(1, 4):
        grads = make_grads(alone, "mix", step)
        run_steps(together, [grads])
        for optimizer, grad in zip(apart, grads, strict=True):
            run_steps(optimizer, [[grad]])
    for ours, theirs in zip(mixed, alone, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize(("family", "path"), families_and_paths(lambda f, p: not p.fused))
def test_gradient_of_another_dtype_than_its_weight(family, path):
    weight = nn.Parameter(torch.randn(4, 3, dtype=torch.bfloat16, device=path.device))
    if not hasattr(weight, "grad_dtype"):
        pytest.skip("needs a torch in which a gradient may have a dtype of its own")
    weight.grad_dtype = torch.float32
    reference = family.reference(
        [weight], dtype=torch.float32, storage=torch.bfloat16, **family.base
    )
    grad = torch.randn(4, 3, device=path.device)
    weight.grad = grad.clone()
    build(family, [weight], path).step()
    reference.step([grad])
    assert_close(weight, reference.weights[0])
    assert torch.equal(weight.grad, grad)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_step_count_survives_a_half_precision_default_dtype(default):
    """A bfloat16 count stops at 256."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)
        weight = nn.Parameter(torch.randn(2, 2, dtype=torch.float32))
        optimizer = build(ADAMP, [weight])
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        count = optimizer.state[weight]["step"]
        count.fill_(2**12)
        optimizer.step()
        assert float(count) == 2**12 + 1
        assert count.dtype in (torch.float32, torch.float64)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("kwargs", [{}, {"maximize": True}], ids=str)
@pytest.mark.parametrize(("family", "path", "dtype"), families_paths_and_dtypes(DTYPES))
def test_step_leaves_gradients_unchanged(family, path, dtype, kwargs):
    weights = make_weights(dtype, device=path.device)
    kwargs = {"weight_decay": 0.01, **MOMENTUM[family.name], **kwargs}
    optimizer = build(family, weights, path, **kwargs)
    for step in range(1, 4):
        set_grads(weights.values(), make_grads(weights.values(), "mix", step))
        grads = [(weight.grad, weight.grad.clone()) for weight in weights.values()]
        optimizer.step()
        for weight, (grad, copy) in zip(weights.values(), grads, strict=True):
            assert weight.grad is grad
            assert torch.equal(grad, copy)


def spoiled(grads, value, step):
    """A non-finite element in one place of every gradient, at one step."""
    if step == 2:
        for grad in grads:
            grad.view(-1)[:1] = value
    return grads


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@EVERY_PATH
def test_non_finite_gradients_spoil_what_they_spoil_without_projection(family, path, value):
    """The same elements become non-finite as in AdamW and SGD, no others."""
    plain = {"AdamP": torch.optim.AdamW, "SGDP": torch.optim.SGD}[family.name]
    names = [name for name in SHAPES if not name.startswith("no_")]
    kwargs = {"weight_decay": 0.01, **MOMENTUM[family.name]}
    theirs = plain(make_weights(names=names).values(), **{**family.base, **kwargs})
    ours = build(family, make_weights(names=names, device=path.device), path, **kwargs)
    for step in range(1, 4):
        weights = theirs.param_groups[0]["params"]
        finite = [weight.nan_to_num(0, 0, 0) for weight in weights]
        grads = spoiled(make_grads(finite, "channel", step), value, step)
        run_steps(theirs, [grads])
        run_steps(ours, [grads])
    for name, weight, wanted in zip(names, snapshot(ours)[0], snapshot(theirs)[0], strict=True):
        assert torch.equal(weight.cpu().isfinite(), wanted.isfinite()), name


@pytest.mark.parametrize("scale", [1e-15, 1e-9, 1e9, 1e17])
@EVERY_PATH
def test_gradients_of_any_scale_are_seen_alike(family, path, scale):
    """Adam's step does not depend on the gradient's scale, nor does the test, save for eps."""
    kwargs = {**family.base, "eps": 1e-36, "weight_decay": 0.01}
    kwargs["lr"] = 1e-2 if family is ADAMP else 1e-2 / scale
    names = ["linear", "conv2d", "embedding"]
    weights = make_weights(torch.float32, device=path.device, names=names)
    reference = family.reference(weights.values(), **kwargs)
    optimizer = build(family, weights, path, **kwargs)
    grads = [scale * grad for grad in make_grads(weights.values(), "mix", 1)]
    reference.step(grads)
    run_steps(optimizer, [grads])
    for name, ours, theirs in zip(names, weights.values(), reference.weights, strict=True):
        assert_close(ours, theirs, what=name)


@EVERY_PATH
def test_zero_gradients_leave_a_weight_without_decay_alone(family, path):
    weights = make_weights(device=path.device)
    before = [weight.detach().clone() for weight in weights.values()]
    run_steps(build(family, weights, path), [[torch.zeros_like(w) for w in before]] * 3)
    assert all(map(torch.equal, weights.values(), before))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_eps_zero_takes_a_zero_weight_for_unprojected(family):
    weights = make_weights(names=["zero", "zero_row"])
    optimizer = build(family, weights, eps=0.0)
    reference = family.reference(weights.values(), **{**family.base, "eps": 0.0})
    grads = make_grads(weights.values(), "random", 1)
    reference.step(grads)
    run_steps(optimizer, [grads])
    assert_close(weights["zero"], reference.weights[0])
    assert_close(weights["zero_row"], reference.weights[1])
