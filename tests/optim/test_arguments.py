"""Constructors: names and defaults of adamp 0.3.0, good values taken, bad ones refused in words."""

import inspect

import numpy
import pytest
import torch

from tests.tables.optimizer_options import (
    ADAMP,
    BAD,
    CONVERTED,
    DTYPES,
    FAMILIES,
    GOOD,
    SGDP_,
    families_and_paths,
)
from tests.training import assert_identical, build, run_steps, snapshot
from tests.weights import make_grads, make_weights


def numbered(table):
    """Its cases as parameters; numbered, since a repr may hold an address or a set's order."""
    return [
        pytest.param(family, case, id=f"{family.name}-{number}-{'-'.join(case.kwargs)}")
        for family in FAMILIES
        for number, case in enumerate(table[family.name])
    ]


BAD_CASES = numbered(BAD)
CONVERTED_CASES = numbered(CONVERTED)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_constructor_has_names_order_and_defaults_of_adamp_0_3_0(family):
    published = inspect.signature(family.published).parameters
    ours = inspect.signature(family.cls).parameters
    assert list(ours)[: len(published)] == list(published)
    for name, parameter in published.items():
        if name not in ("params", "lr") or family is ADAMP:
            assert ours[name].default == parameter.default, name
    assert ours["lr"].default == (1e-3 if family is ADAMP else inspect.Parameter.empty)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_constructor_keeps_every_option_in_the_group(family):
    for good in GOOD[family.name]:
        optimizer = build(family, make_weights(names=["linear"]), **good.kwargs)
        group = optimizer.param_groups[0]
        assert {name: group[name] for name in good.kwargs} == good.kwargs


def same_kind(kept, wanted):
    """Equal, and of the same plain type all the way down."""
    if isinstance(wanted, tuple):
        return type(kept) is tuple and all(map(same_kind, kept, wanted))
    return type(kept) is type(wanted) and kept == wanted


@pytest.mark.parametrize(("family", "case"), CONVERTED_CASES)
def test_option_of_another_type_is_kept_as_a_plain_value(family, case):
    (name, value), *_ = case.kwargs.items()
    weights = make_weights(names=["linear", "bias"])
    for optimizer in (
        build(family, [weights["linear"]], **case.kwargs),
        build(family, [{"params": [weights["linear"]], **case.kwargs}]),
    ):
        assert same_kind(optimizer.param_groups[0][name], case.kept)
    optimizer = build(family, [weights["bias"]])
    optimizer.add_param_group({"params": [weights["linear"]], name: value})
    assert same_kind(optimizer.param_groups[1][name], case.kept)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_tensors_of_lr_and_betas_stay_the_tensors_they_are(family):
    """They may change from step to step."""
    tensors = {"lr": torch.tensor([0.1])}
    if family is ADAMP:
        tensors["betas"] = (torch.tensor(0.5), torch.tensor([0.75]))
    group = build(family, make_weights(names=["linear"]), **tensors).param_groups[0]
    assert group["lr"] is tensors["lr"]
    if family is ADAMP:
        assert all(map(lambda a, b: a is b, group["betas"], tensors["betas"]))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_group_that_is_passed_is_the_group_that_is_kept(family):
    group = {"params": list(make_weights(names=["linear"]).values()), "eps": numpy.float64(0.5)}
    optimizer = build(family, [group])
    assert optimizer.param_groups[0] is group
    assert type(group["eps"]) is float


@pytest.mark.parametrize(("family", "bad"), BAD_CASES)
def test_bad_option_is_refused(family, bad):
    with pytest.raises(bad.error, match=bad.match):
        build(family, make_weights(names=["linear"]), **bad.kwargs)


@pytest.mark.parametrize(("family", "bad"), BAD_CASES)
def test_bad_option_is_refused_in_a_group_of_its_own(family, bad):
    weights = make_weights(names=["linear", "bias"])
    with pytest.raises(bad.error, match=bad.match):
        build(
            family, [{"params": [weights["linear"]]}, {"params": [weights["bias"]], **bad.kwargs}]
        )


@pytest.mark.parametrize(("family", "bad"), BAD_CASES)
def test_bad_option_in_add_param_group_leaves_the_optimizer_as_it_was(family, bad):
    weights = make_weights(names=["linear", "bias"])
    optimizer = build(family, [weights["linear"]])
    before = optimizer.state_dict()
    with pytest.raises(bad.error, match=bad.match):
        optimizer.add_param_group({"params": [weights["bias"]], **bad.kwargs})
    assert optimizer.state_dict() == before
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_unknown_argument_is_refused(family):
    with pytest.raises(TypeError, match="detla"):
        build(family, make_weights(names=["linear"]), detla=0.1)


def test_sgdp_needs_a_learning_rate():
    with pytest.raises(TypeError, match="lr"):
        SGDP_.cls(make_weights(names=["linear"]).values())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_no_weights_are_refused(family):
    with pytest.raises(ValueError, match="empty parameter list"):
        build(family, [])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
@pytest.mark.parametrize("flags", [{}, {"foreach": True}, {"foreach": False}], ids=str)
def test_step_that_cannot_be_taken_changes_nothing_in_any_group(family, flags):
    weights = make_weights(names=["linear", "bias"])
    served = [{"params": list(weights.values()), "weight_decay": 0.1, **flags}]
    refused = torch.nn.Parameter(torch.ones(3, 3, dtype=torch.float64))
    options = {"momentum": 0.9} if family is SGDP_ else {}
    groups = [*served, {"params": [refused], "fused": True}]
    optimizer = family.cls(groups, **family.base, **options)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"fused=True cannot serve .*: .* Leave the flag"):
        run_steps(optimizer, [make_grads([*weights.values(), refused], "channel", 1)])
    assert_identical(snapshot(optimizer), before)
    assert not optimizer.state
    optimizer.param_groups[1]["fused"] = None
    optimizer.step()


NOT_DENSE = families_and_paths(lambda family, path: path.dense_only)


@pytest.mark.parametrize(("family", "path"), NOT_DENSE)
def test_fused_refuses_a_gradient_of_other_strides(family, path):
    weight = torch.nn.Parameter(torch.randn(4, 3, device=path.device))
    optimizer = build(family, [weight], path)
    weight.grad = torch.randn(3, 4, device=path.device).t()
    with pytest.raises(RuntimeError, match=r"fused=True cannot serve a torch\.float32 weight of"):
        optimizer.step()
    weight.grad = weight.grad.contiguous()
    optimizer.step()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("family", "path"), NOT_DENSE)
def test_fused_refuses_dtypes_that_it_has_no_kernel_for(family, path, dtype):
    weight = torch.nn.Parameter(torch.randn(4, 3, device=path.device, dtype=dtype))
    optimizer = build(family, [weight], path)
    weight.grad = torch.randn_like(weight)
    if dtype in path.dtypes:
        optimizer.step()
        return
    with pytest.raises(RuntimeError, match=rf"cannot serve a {dtype} weight"):
        optimizer.step()


@pytest.mark.parametrize("family", [ADAMP], ids=lambda f: f.name)
def test_capturable_is_refused_on_the_cpu(family):
    weights = make_weights(names=["linear"])
    optimizer = build(family, weights, capturable=True)
    before = weights["linear"].detach().clone()
    with pytest.raises(RuntimeError, match="capturable=True is for accelerators"):
        run_steps(optimizer, [make_grads(weights.values(), "channel", 1)])
    assert torch.equal(weights["linear"], before)
    assert not optimizer.state
