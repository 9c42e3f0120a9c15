"""Checkpoints: torch's layout, bitwise continuation, and exchange with the packages it replaces."""

import copy
import importlib.util
import io
import itertools
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.tables.optimizer_options import ADAMP, FAMILIES, HALVES, SGDP_, families_and_paths
from tests.tolerances import assert_close
from tests.training import (
    assert_identical,
    assert_same,
    build,
    params_of,
    run_steps,
    set_grads,
    snapshot,
)
from tests.versions import needs_torch
from tests.weights import SHAPES, make_grads, make_weights

EVERY_PATH = pytest.mark.parametrize(("family", "path"), families_and_paths())
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
KWARGS = {
    "AdamP": {"weight_decay": 0.1},
    "SGDP": {"momentum": 0.9, "weight_decay": 0.01},
}
NAMES = [name for name in SHAPES if not name.startswith("no_")]


def train(optimizer, steps, kind="mix"):
    for step in steps:
        run_steps(optimizer, [make_grads(params_of(optimizer), kind, step)])


def continue_alike(first, second, steps=range(6, 11), kind="mix"):
    """Both take the same gradients, those of the first one's weights."""
    for step in steps:
        grads = make_grads(params_of(first), kind, step)
        run_steps(first, [grads])
        run_steps(second, [grads])


def moved_into(family, optimizer, path=None, **kwargs):
    """Ours with the weights and the checkpoint of another optimizer."""
    device = path.device if path else "cpu"
    weights = [nn.Parameter(p.detach().to(device, copy=True)) for p in params_of(optimizer)]
    ours = build(family, weights, path, **{**KWARGS[family.name], **kwargs})
    ours.load_state_dict(through_a_file(optimizer.state_dict()))
    return ours


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@EVERY_FAMILY
def test_state_dict_has_torchs_layout(family):
    optimizer = build(family, make_weights(names=NAMES), **KWARGS[family.name])
    plain = {"AdamP": torch.optim.AdamW, "SGDP": torch.optim.SGD}[family.name]
    torchs = plain(make_weights(names=NAMES).values(), **{**family.base, **KWARGS[family.name]})
    for each in (optimizer, torchs):
        train(each, [1])
    ours, theirs = optimizer.state_dict(), torchs.state_dict()
    assert ours.keys() == theirs.keys()
    assert ours["param_groups"][0]["params"] == theirs["param_groups"][0]["params"]
    assert ours["state"].keys() == theirs["state"].keys()
    keys = {"AdamP": {"step", "exp_avg", "exp_avg_sq"}, "SGDP": {"momentum"}}[family.name]
    assert all(state.keys() == keys for state in ours["state"].values())
    if family is ADAMP:
        assert theirs["state"][0].keys() == keys
        assert ours["state"][0]["step"].dtype == theirs["state"][0]["step"].dtype


@EVERY_PATH
def test_checkpoint_continues_bit_for_bit(family, path):
    weights = make_weights(names=NAMES, device=path.device)
    optimizer = build(family, weights, path, **KWARGS[family.name])
    train(optimizer, range(1, 6))
    resumed = moved_into(family, optimizer, path)
    assert_identical(snapshot(resumed), snapshot(optimizer))
    continue_alike(optimizer, resumed)
    assert_identical(snapshot(resumed), snapshot(optimizer))


@EVERY_PATH
def test_saving_does_not_disturb_training(family, path):
    weights = [make_weights(names=NAMES, device=path.device) for _ in range(2)]
    saved, other = (build(family, w, path, **KWARGS[family.name]) for w in weights)
    for step in range(1, 8):
        continue_alike(saved, other, [step])
        copy.deepcopy(saved.state_dict())
    assert_same(family, snapshot(saved), snapshot(other), names=NAMES)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@EVERY_FAMILY
def test_moments_of_half_precision_weights_survive_in_float32(family, dtype):
    optimizer = build(family, make_weights(dtype, names=NAMES), **KWARGS[family.name])
    train(optimizer, range(1, 6))
    resumed = moved_into(family, optimizer)
    assert_identical(snapshot(resumed), snapshot(optimizer))
    continue_alike(optimizer, resumed)
    assert_identical(snapshot(resumed), snapshot(optimizer))
    state = resumed.state[params_of(resumed)[0]]
    assert state[family.moments[0]].dtype == torch.float32


@EVERY_FAMILY
def test_loading_keeps_a_checkpoint_unchanged(family):
    optimizer = build(family, make_weights(names=NAMES), **KWARGS[family.name])
    train(optimizer, range(1, 3))
    state_dict = copy.deepcopy(optimizer.state_dict())
    before = copy.deepcopy(state_dict)
    ours = build(family, make_weights(names=NAMES), **KWARGS[family.name])
    ours.load_state_dict(state_dict)
    assert state_dict["param_groups"] == before["param_groups"]
    for key, state in before["state"].items():
        assert state.keys() == state_dict["state"][key].keys()
        assert all(torch.equal(v, state_dict["state"][key][k]) for k, v in state.items())


@EVERY_FAMILY
def test_options_come_from_the_checkpoint_and_else_from_the_optimizer(family):
    weights = make_weights(names=NAMES)
    saved = build(family, weights, delta=0.25, **{**KWARGS[family.name], "lr": 0.5})
    train(saved, [1])
    state_dict = saved.state_dict()
    del state_dict["param_groups"][0]["wd_ratio"]
    ours = build(family, make_weights(names=NAMES), wd_ratio=0.75)
    ours.load_state_dict(state_dict)
    group = ours.param_groups[0]
    assert (group["delta"], group["lr"], group["wd_ratio"]) == (0.25, 0.5, 0.75)


def published(family, **kwargs):
    """adamp 0.3.0 in mid-training."""
    weights = make_weights(names=NAMES)
    kwargs = {**family.base, **KWARGS[family.name], **kwargs}
    optimizer = family.published(list(weights.values()), **kwargs)
    train(optimizer, range(1, 6))
    return optimizer


# Without Nesterov momentum adamp 0.3.0's SGDP does something else, see test_equality.py.
EXCHANGED = {"AdamP": {}, "SGDP": {"nesterov": True}}


@EVERY_PATH
def test_state_dict_from_adamp_0_3_0_continues_identically(family, path):
    theirs = published(family, **EXCHANGED[family.name])
    ours = moved_into(family, theirs, path)
    assert ours.param_groups[0]["nesterov"] is (family is SGDP_)
    continue_alike(theirs, ours)
    assert_same(family, snapshot(ours), snapshot(theirs), names=NAMES)


@EVERY_FAMILY
def test_state_dict_into_adamp_0_3_0_continues_identically(family):
    weights = make_weights(names=NAMES)
    ours = build(family, weights, **KWARGS[family.name], **EXCHANGED[family.name])
    train(ours, range(1, 6))
    theirs = family.published([nn.Parameter(p.detach().clone()) for p in params_of(ours)], lr=1.0)
    theirs.load_state_dict(through_a_file(ours.state_dict()))
    continue_alike(ours, theirs)
    assert_same(family, snapshot(ours), snapshot(theirs), names=NAMES)


def timm_class(module, name, monkeypatch):
    """timm's optimizer, loaded without the rest of timm, which needs torchvision."""
    spec = importlib.util.find_spec("timm")
    folder = spec and Path(spec.submodule_search_locations[0]) / "optim"
    if not folder or not (folder / f"{module}.py").exists():
        pytest.skip("needs timm")
    package = types.ModuleType("timm_optim")
    package.__path__ = [str(folder)]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    return getattr(importlib.import_module(f"timm_optim.{module}"), name)


@EVERY_FAMILY
def test_state_dict_from_timm_continues_identically(family, monkeypatch):
    cls = timm_class(family.name.lower(), family.name, monkeypatch)
    kwargs = {**family.base, **KWARGS[family.name]}
    theirs = cls(list(make_weights(names=NAMES).values()), **kwargs)
    train(theirs, range(1, 6))
    ours = moved_into(family, theirs)
    continue_alike(theirs, ours)
    assert_same(family, snapshot(ours), snapshot(theirs), names=NAMES)


def continued_from_torch(family, cls, path, **kwargs):
    """torch's optimizer in mid-training, ours with its checkpoint and nothing to project."""
    theirs = cls(list(make_weights(names=NAMES).values()), **{**family.base, **kwargs})
    train(theirs, range(1, 6))
    return theirs, moved_into(family, theirs, path, delta=0.0)


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.Adam])
@pytest.mark.parametrize(("family", "path"), families_and_paths(lambda f, p: f is ADAMP))
def test_state_dict_from_torch_adam_continues_identically(family, path, cls):
    theirs, ours = continued_from_torch(family, cls, path, weight_decay=0.0)
    continue_alike(theirs, ours)
    assert_same(family, snapshot(ours), snapshot(theirs), names=NAMES)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("family", "path"), families_and_paths(lambda f, p: f is SGDP_))
def test_state_dict_from_torch_sgd_continues_identically(family, path, nesterov):
    theirs, ours = continued_from_torch(
        family, torch.optim.SGD, path, momentum=0.9, nesterov=nesterov
    )
    continue_alike(theirs, ours)
    for actual, expected in zip(params_of(ours), params_of(theirs), strict=True):
        assert_close(actual, expected)
        buffer = theirs.state[expected]["momentum_buffer"]
        assert_close(ours.state[actual]["momentum"], buffer)


def test_state_dict_of_sgd_that_has_not_begun_loads():
    theirs = torch.optim.SGD(make_weights(names=NAMES).values(), lr=0.1, momentum=0.0)
    train(theirs, [1])
    ours = build(SGDP_, make_weights(names=NAMES), momentum=0.9)
    ours.load_state_dict(theirs.state_dict())
    ours.param_groups[0]["momentum"] = 0.9
    train(ours, [2])
    assert all("momentum" in ours.state[param] for param in params_of(ours))


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.Adam])
def test_state_dict_into_torch_adam_continues_identically(cls):
    weights = make_weights(names=NAMES)
    ours = build(ADAMP, weights, delta=0.0, weight_decay=0.0)
    train(ours, range(1, 6))
    theirs = cls([nn.Parameter(p.detach().clone()) for p in params_of(ours)], lr=1.0)
    theirs.load_state_dict(through_a_file(ours.state_dict()))
    continue_alike(ours, theirs)
    assert_same(ADAMP, snapshot(ours), snapshot(theirs), names=NAMES)


@needs_torch("2.7", "checkpoints of torch 2.6's Adam do not say which decay they had")
def test_weight_decay_of_a_torch_adam_checkpoint_is_warned_about(caplog):
    theirs = torch.optim.Adam(make_weights(names=NAMES).values(), weight_decay=0.1)
    train(theirs, [1])
    build(ADAMP, make_weights(names=NAMES)).load_state_dict(theirs.state_dict())
    assert "L2 penalty" in caplog.text


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.Adam])
def test_amsgrad_checkpoint_is_refused_before_anything_changes(cls):
    theirs = cls(make_weights(names=NAMES).values(), amsgrad=True)
    train(theirs, [1])
    ours = build(ADAMP, make_weights(names=NAMES))
    train(ours, [1, 2])
    before, options = snapshot(ours), copy.deepcopy(ours.state_dict()["param_groups"])
    with pytest.raises(ValueError, match="amsgrad=True"):
        ours.load_state_dict(theirs.state_dict())
    assert_identical(snapshot(ours), before)
    assert ours.state_dict()["param_groups"] == options


@EVERY_FAMILY
def test_checkpoint_of_other_groups_is_refused_in_torchs_words(family):
    weights = make_weights(names=NAMES)
    one = build(family, weights)
    two = build(family, [{"params": [w]} for w in itertools.islice(weights.values(), 2)])
    with pytest.raises(ValueError, match="different number of parameter groups"):
        one.load_state_dict(two.state_dict())
    with pytest.raises(ValueError, match="different number of parameter groups"):
        two.load_state_dict(one.state_dict())
    short = build(family, list(weights.values())[:3])
    with pytest.raises(ValueError, match="doesn't match the size"):
        short.load_state_dict(one.state_dict())


@EVERY_PATH
def test_checkpoint_crosses_paths(family, path):
    """Trained on one path, continued on another."""
    single = build(family, make_weights(names=NAMES), foreach=False, **KWARGS[family.name])
    train(single, range(1, 6))
    weights = [nn.Parameter(p.detach().to(path.device, copy=True)) for p in params_of(single)]
    ours = build(family, weights, path, **KWARGS[family.name])
    state_dict = through_a_file(single.state_dict())
    state_dict["param_groups"][0].update({"foreach": None, "fused": None, **path.flags})
    ours.load_state_dict(state_dict)
    continue_alike(single, ours)
    assert_same(family, snapshot(ours), snapshot(single), names=NAMES)


def test_step_count_of_an_integer_becomes_a_tensor():
    theirs = published(ADAMP)
    assert isinstance(theirs.state_dict()["state"][0]["step"], int)
    ours = moved_into(ADAMP, theirs)
    step = ours.state[params_of(ours)[0]]["step"]
    assert torch.is_tensor(step)
    assert step.item() == 5


@EVERY_FAMILY
def test_what_changes_between_steps_is_noticed(family):
    """Weights, gradients and state may be other tensors, or lie elsewhere, in the next step."""

    def other_memory(weight, state):
        weight.data = weight.data.clone()

    def other_strides(weight, state):
        weight.data = weight.data.t().contiguous().t()

    def other_state(weight, state):
        for key in family.moments:
            state[key] = state[key].clone()

    def other_state_strides(weight, state):
        for key in family.moments:
            state[key] = state[key].t().contiguous().t()

    def no_change(weight, state):
        pass

    changes = [other_memory, other_strides, other_state, other_state_strides, no_change]
    weight = make_weights(names=["linear"])["linear"]
    kwargs = {**family.base, **KWARGS[family.name]}
    reference = family.reference([weight], **kwargs)
    optimizer = build(family, [weight], **KWARGS[family.name])
    for step, change in enumerate(changes * 2, start=1):
        grads = [g.float() for g in make_grads(reference.weights, "mix", step)]
        reference.step(grads)
        set_grads([weight], grads)
        if step % 3 == 0:
            weight.grad = weight.grad.t().contiguous().t()
        optimizer.step()
        assert_close(weight, reference.weights[0], what=f"after {change.__name__}")
        change(weight, optimizer.state[weight])


@EVERY_FAMILY
def test_weights_of_another_precision_than_their_state_are_refused(family):
    """As after `model.double()` in mid-training."""
    weight = make_weights(names=["linear"])["linear"]
    optimizer = build(family, [weight], **KWARGS[family.name])
    train(optimizer, [1, 2])
    weight.data, weight.grad = weight.data.double(), None
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"needs state in torch\.float64, not torch\.float32"):
        train(optimizer, [3])
    assert_identical(snapshot(optimizer), before)
