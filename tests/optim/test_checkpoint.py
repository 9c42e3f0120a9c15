"""Loading: hooks have the last word, state is complete or refused, nothing changes before that."""

import copy
import json
from collections import OrderedDict

import numpy
import pytest
import torch
from torch import nn

from tests.tables.optimizer_options import ADAMP, FAMILIES, SGDP_
from tests.training import assert_identical, build, params_of, run_steps, snapshot
from tests.weights import make_grads

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
MOMENTUM = {"AdamP": {}, "SGDP": {"momentum": 0.9}}


def squares(count=3, dtype=torch.float32):
    """Weights that only their values tell apart."""
    draw = torch.Generator().manual_seed(count)
    return [nn.Parameter(torch.randn(3, 3, generator=draw).to(dtype)) for _ in range(count)]


def trained(family, weights, steps=2, **kwargs):
    optimizer = build(family, weights, **{**MOMENTUM[family.name], **kwargs})
    for step in range(steps):
        run_steps(optimizer, [make_grads(params_of(optimizer), "mix", step)])
    return optimizer


def torchs(family, weights, steps=2, **kwargs):
    """The optimizer of torch.optim that the family replaces, in mid-training."""
    cls = {"AdamP": torch.optim.AdamW, "SGDP": torch.optim.SGD}[family.name]
    optimizer = cls(weights, **{**family.base, **MOMENTUM[family.name], **kwargs})
    for step in range(steps):
        run_steps(optimizer, [make_grads(params_of(optimizer), "mix", step)])
    return optimizer


def moments(optimizer, family):
    return [
        [optimizer.state[param][name] for name in family.moments] for param in params_of(optimizer)
    ]


def assert_equal(ours, theirs):
    for mine, wanted in zip(ours, theirs, strict=True):
        assert all(map(torch.equal, mine, wanted))


def by_name(optimizer, saved):
    """What torch's documentation shows: the state that the checkpoint has under each name."""
    group = saved["param_groups"][0]
    keys = dict(zip(group["param_names"], group["params"], strict=True))
    names = optimizer.param_groups[0]["param_names"]
    return {
        "state": {i: saved["state"][keys[n]] for i, n in enumerate(names) if n in keys},
        "param_groups": [{**group, "params": list(range(len(names))), "param_names": names}],
    }


@EVERY_FAMILY
@pytest.mark.parametrize("names", ["cba", "acb", "cbad", "b"])
def test_pre_hook_decides_which_state_a_weight_gets(family, names):
    """As in torch.optim: reordered, more weights than the checkpoint has, fewer."""
    first = trained(family, zip("abc", squares(), strict=True))
    wanted = dict(zip("abc", moments(first, family), strict=True))
    weights = dict(zip(names, squares(len(names)), strict=True))
    second = build(family, list(weights.items()), **MOMENTUM[family.name])
    second.register_load_state_dict_pre_hook(by_name)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for name, weight in weights.items():
        state = second.state.get(weight, {})
        assert (family.moments[0] in state) == (name in wanted)
        for moment, value in zip(family.moments, wanted.get(name, ()), strict=False):
            assert torch.equal(state[moment], value)
    run_steps(second, [make_grads(params_of(second), "mix", 5)])


@EVERY_FAMILY
def test_pre_hook_that_keeps_old_names_beside_its_own_order_is_not_undone(family):
    def reverse(optimizer, saved):
        state = dict(zip(range(3), reversed(saved["state"].values()), strict=True))
        return {**saved, "state": state}

    first = trained(family, zip("abc", squares(), strict=True))
    second = build(family, list(zip("cba", squares(), strict=True)), **MOMENTUM[family.name])
    second.register_load_state_dict_pre_hook(reverse)
    second.load_state_dict(first.state_dict())
    assert_equal(moments(second, family), reversed(moments(first, family)))


@EVERY_FAMILY
def test_pre_hook_that_changes_the_checkpoint_in_place_counts(family):
    def halve(_, saved):
        saved["state"] = {
            key: {k: v / 2 if k in family.moments else v for k, v in state.items()}
            for key, state in saved["state"].items()
        }

    first = trained(family, squares(dtype=torch.bfloat16))
    second = build(family, squares(dtype=torch.bfloat16), **MOMENTUM[family.name])
    second.register_load_state_dict_pre_hook(halve)
    second.load_state_dict(first.state_dict())
    halves = [[moment / 2 for moment in each] for each in moments(first, family)]
    assert_equal(moments(second, family), halves)


@EVERY_FAMILY
def test_post_hook_edits_are_kept(family):
    name = family.moments[0]

    def clear(optimizer):
        for param in params_of(optimizer):
            optimizer.state[param][name] = torch.zeros_like(param)
        optimizer.param_groups[0]["lr"] = 0.5

    first = trained(family, squares())
    second = build(family, squares(), **MOMENTUM[family.name])
    second.register_load_state_dict_post_hook(clear)
    second.load_state_dict(first.state_dict())
    assert not any(second.state[param][name].any() for param in params_of(second))
    assert second.param_groups[0]["lr"] == 0.5


@EVERY_FAMILY
def test_loading_leaves_no_hook_behind(family):
    optimizer = trained(family, squares())
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    with pytest.raises(KeyError):
        optimizer.load_state_dict({"state": {}})
    assert not optimizer._optimizer_load_state_dict_pre_hooks
    assert not optimizer._optimizer_load_state_dict_post_hooks


@EVERY_FAMILY
def test_moments_keep_the_precision_that_torchs_loading_takes_from_them(family):
    first = trained(family, squares(dtype=torch.bfloat16))
    second = build(family, squares(dtype=torch.bfloat16), **MOMENTUM[family.name])
    second.load_state_dict(first.state_dict())
    assert_equal(moments(second, family), moments(first, family))
    assert moments(second, family)[0][0].dtype == torch.float32


@pytest.mark.parametrize(
    "step",
    [
        3,
        3.0,
        numpy.int64(3),
        numpy.float32(3),
        torch.tensor(3),
        torch.tensor([3.0]),
        torch.tensor(3.0, dtype=torch.bfloat16),
    ],
    ids=repr,
)
def test_step_count_of_any_kind_becomes_a_float32_tensor(step):
    """In bfloat16 it would stop at 256."""
    first = trained(ADAMP, squares())
    saved = first.state_dict()
    saved["state"] = {key: {**state, "step": step} for key, state in saved["state"].items()}
    second = build(ADAMP, squares())
    second.load_state_dict(saved)
    for param in params_of(second):
        count = second.state[param]["step"]
        assert count.shape == ()
        assert count.dtype == torch.float32
        assert count == 3
    run_steps(second, [make_grads(params_of(second), "mix", 5)])
    assert second.state[params_of(second)[0]]["step"] == 4


@EVERY_FAMILY
def test_weights_without_state_begin_anew(family):
    first = trained(family, squares())
    saved = first.state_dict()
    del saved["state"][1]
    second = build(family, squares(), **MOMENTUM[family.name])
    second.load_state_dict(saved)
    assert params_of(second)[1] not in second.state
    run_steps(second, [make_grads(params_of(second), "mix", 5)])
    assert family.moments[0] in second.state[params_of(second)[1]]


@EVERY_FAMILY
def test_state_of_no_weight_and_extra_state_are_kept_as_in_torch(family):
    first = trained(family, squares())
    saved = first.state_dict()
    saved["state"][99] = {"note": 1}
    saved["state"][0]["tag"] = 7
    second = build(family, squares(), **MOMENTUM[family.name])
    second.load_state_dict(saved)
    assert second.state[99] == {"note": 1}
    assert second.state[params_of(second)[0]]["tag"] == 7


@EVERY_FAMILY
def test_options_of_a_checkpoint_are_converted_as_the_constructors(family):
    first = trained(family, squares())
    saved = json.loads(json.dumps(first.state_dict()["param_groups"]))
    saved[0] |= {"lr": numpy.float32(0.5), "scale_invariant": ["head", 3], "maximize": "true"}
    second = build(family, squares())
    second.load_state_dict({"state": {}, "param_groups": saved})
    group = second.param_groups[0]
    assert type(group["lr"]) is float
    assert (group["lr"], group["scale_invariant"], group["maximize"]) == (0.5, ("head", 3), True)
    assert family is SGDP_ or group["betas"] == (0.9, 0.999)


@EVERY_FAMILY
def test_how_another_optimizer_computed_its_steps_is_not_taken_over(family):
    """A Trainer's AdamW is fused; that must not insist on a fused kernel of ours."""
    theirs = torchs(family, squares(), fused=True, maximize=True)
    ours = build(family, squares(), foreach=True)
    ours.load_state_dict(theirs.state_dict())
    group = ours.param_groups[0]
    assert (group["fused"], group["foreach"], group["maximize"]) == (None, True, True)
    run_steps(ours, [make_grads(params_of(ours), "mix", 5)])


def without(saved, name):
    state = {
        key: {k: v for k, v in values.items() if k != name}
        for key, values in saved["state"].items()
    }
    return {**saved, "state": state}


def replaced(saved, **values):
    return {**saved, "state": {0: {**saved["state"][0], **values}}}


MOMENT = {"AdamP": "exp_avg", "SGDP": "momentum"}
REFUSED = [
    (lambda s, m: replaced(s, **{m: [0.0] * 9}), TypeError, "list as {0}", "a list"),
    (
        lambda s, m: replaced(s, **{m: torch.zeros(9)}),
        ValueError,
        r"shape \(9,\)|whose shapes differ",
        "another shape",
    ),
    (lambda s, m: {**s, "state": {0: [1, 2]}}, TypeError, "list as a weight's state", "no mapping"),
    (
        lambda s, m: {**s, "state": {str(k): v for k, v in s["state"].items()}},
        ValueError,
        "state of 0, 1, 2, but its groups have the weights 0, 1, 2; the keys",
        "keys as JSON makes them",
    ),
    (
        lambda s, m: {**s, "param_groups": [{**s["param_groups"][0], "lr": -1.0}]},
        ValueError,
        r"lr=-1\.0 must be at least 0",
        "an option out of range",
    ),
    (
        lambda s, m: {**s, "param_groups": [{**s["param_groups"][0], "eps": None}]},
        TypeError,
        "eps=None must be a number",
        "an option of the wrong type",
    ),
    (
        lambda s, m: {
            **s,
            "param_groups": [{**s["param_groups"][0], "scale_invariant": ("head", 2)}],
        },
        ValueError,
        "needs a multiple of 2 rows",
        "heads that do not divide the rows",
    ),
]


@EVERY_FAMILY
@pytest.mark.parametrize(
    ("change", "error", "match"), [case[:3] for case in REFUSED], ids=[case[3] for case in REFUSED]
)
def test_bad_checkpoint_is_refused_before_anything_changes(family, change, error, match):
    saved = change(trained(family, squares()).state_dict(), MOMENT[family.name])
    ours = trained(family, squares(), steps=1)
    before, groups = snapshot(ours), copy.deepcopy(ours.state_dict()["param_groups"])
    with pytest.raises(error, match=match.format(MOMENT[family.name])):
        ours.load_state_dict(saved)
    assert_identical(snapshot(ours), before)
    assert ours.state_dict()["param_groups"] == groups


@pytest.mark.parametrize("missing", ["exp_avg", "exp_avg_sq", "step"])
def test_state_that_lacks_something_is_refused(missing):
    """SGDP has one moment only: without it a weight has not begun."""
    saved = without(trained(ADAMP, squares()).state_dict(), missing)
    with pytest.raises(ValueError, match=f"lacks {missing}: it is of another optimizer, or not"):
        build(ADAMP, squares()).load_state_dict(saved)


@pytest.mark.parametrize("step", ["three", float("nan"), -1, None])
def test_step_count_that_is_none_is_refused(step):
    saved = trained(ADAMP, squares()).state_dict()
    with pytest.raises((TypeError, ValueError), match="step"):
        build(ADAMP, squares()).load_state_dict(replaced(saved, step=step))


@pytest.mark.parametrize(
    ("family", "other"),
    [(ADAMP, torch.optim.RMSprop), (ADAMP, torch.optim.SGD), (SGDP_, torch.optim.AdamW)],
    ids=["RMSprop-AdamP", "SGD-AdamP", "AdamW-SGDP"],
)
def test_state_of_an_optimizer_of_another_kind_is_refused(family, other):
    """Loaded in silence, training would begin anew."""
    momentum = {} if other is torch.optim.AdamW else {"momentum": 0.9}
    theirs = other(squares(), lr=0.1, **momentum)
    run_steps(theirs, [make_grads(params_of(theirs), "mix", 1)])
    with pytest.raises(ValueError, match="it is of another optimizer, or not complete"):
        build(family, squares()).load_state_dict(theirs.state_dict())


@EVERY_FAMILY
def test_ordered_dictionaries_load(family):
    first = trained(family, squares())
    second = build(family, squares(), **MOMENTUM[family.name])
    second.load_state_dict(OrderedDict(first.state_dict()))
    assert_equal(moments(second, family), moments(first, family))
