"""Weights without a shape or without values when the optimizer is made: as in torch.optim."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn

from hf_adamp import SGDP, AdamP, get_param_groups


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)
    )


def train(model, optimizer, steps=3):
    torch.manual_seed(1)
    for _ in range(steps):
        model(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("cls", [AdamP, partial(SGDP, momentum=0.9)])
def test_lazy_weights_are_stepped_once_they_have_a_shape(cls):
    options = {"lr": 0.1, "weight_decay": 0.01}
    lazy, known = network(), network()
    lazily = cls(lazy.parameters(), **options)
    for model in (known, lazy):
        model(torch.randn(2, 3, 8, 8))
    known.load_state_dict(lazy.state_dict())
    for ours, other in zip(
        train(lazy, lazily), train(known, cls(known.parameters(), **options)), strict=True
    ):
        assert torch.equal(ours, other)


@pytest.mark.parametrize(
    "options",
    [
        {"scale_invariant": "row"},
        {"scale_invariant": ("head_dim", 1)},
        {"rounding": "kahan"},
        {"state_dtype": "bfloat16"},
        {"foreach": True},
        {"fused": True},
    ],
    ids=str,
)
def test_options_wait_for_the_shape(options):
    model = network()
    optimizer = AdamP(model.parameters(), lr=0.1, **options)
    train(model, optimizer)
    assert len(optimizer.state) == 6


def test_declared_heads_are_checked_when_the_shape_is_there():
    model = network()
    report = {"0.weight": "row", "4.weight": ("head", 2)}
    optimizer = AdamP(get_param_groups(model, 0.1, scale_invariance=report), lr=0.1)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=r"multiple of 2 rows, but .* of shape \(3, 144\) has 3"):
        optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert not optimizer.state


def test_module_that_stays_lazy_is_left_alone():
    """An expert that gets no token yet, say."""
    idle = nn.LazyLinear(4)
    model = nn.ModuleList([nn.Linear(3, 4), idle])
    optimizer = AdamP(get_param_groups(model, 0.1), lr=0.1)
    for _ in range(2):
        model[0](torch.randn(2, 3)).sum().backward()
        optimizer.step()
    assert set(optimizer.state) == set(model[0].parameters())
    idle(torch.randn(2, 3)).sum().backward()
    before = idle.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(idle.weight, before)


@pytest.mark.parametrize("cls", [AdamP, SGDP])
def test_lazy_optimizer_is_saved_copied_and_shown(cls):
    optimizer = cls(network().parameters(), lr=0.1)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert len(copied.param_groups[0]["params"]) == 6
    assert repr(optimizer).startswith(cls.__name__)


@pytest.mark.parametrize("grouped", [lambda m: m.parameters(), lambda m: get_param_groups(m, 0.1)])
def test_checkpoint_is_loaded_before_the_shapes_are_there(grouped):
    trained, resumed = network(), network()
    first = AdamP(grouped(trained), lr=0.1)
    train(trained, first)
    second = AdamP(grouped(resumed), lr=0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed.load_state_dict(trained.state_dict())
    for ours, other in zip(train(resumed, second), train(trained, first), strict=True):
        assert torch.equal(ours, other)


class Bank(nn.modules.lazy.LazyModuleMixin, nn.Module):
    """A module of the user's own, whose names say nothing of a matrix."""

    cls_to_become = nn.Module

    def __init__(self):
        super().__init__()
        self.filters = nn.UninitializedParameter()


def test_weight_whose_shape_would_decide_its_decay_is_named():
    with pytest.raises(ValueError, match=r"bank\.filters has no shape yet.*\(Bank\).*one batch"):
        get_param_groups(nn.ModuleDict({"bank": Bank()}), 0.1)
    # A rule that does not ask is not troubled.
    groups = get_param_groups(Bank(), 0.1, rule=lambda name, parameter, module: True)
    assert len(AdamP(groups).param_groups) == 1


def on_meta():
    with torch.device("meta"):
        return nn.Linear(3, 4)


@pytest.mark.parametrize("cls", [AdamP, SGDP, torch.optim.AdamW])
def test_meta_weights_make_an_optimizer_and_a_step_without_values(cls):
    model = on_meta()
    optimizer = cls(model.parameters(), lr=0.1)
    for p in model.parameters():
        p.grad = torch.empty_like(p)
    optimizer.step()
    assert all(p.is_meta for p in model.parameters())
    moments = [t for s in optimizer.state.values() for k, t in s.items() if k != "step"]
    assert all(t.is_meta for t in moments)


@pytest.fixture
def swapping():
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.usefixtures("swapping")
@pytest.mark.parametrize("stepped", [False, True])
def test_meta_weights_that_get_values_in_place_are_stepped(stepped):
    model, twin = on_meta(), nn.Linear(3, 4)
    optimizer, other = AdamP(model.parameters(), lr=0.1), AdamP(twin.parameters(), lr=0.1)
    if stepped:
        optimizer.step()
    model.to_empty(device="cpu")
    model.load_state_dict(twin.state_dict())
    x = torch.randn(5, 3)
    for net, own in ((model, optimizer), (twin, other)):
        for _ in range(2):
            net(x).square().sum().backward()
            own.step()
    assert torch.equal(model.weight, twin.weight)
    assert torch.equal(model.bias, twin.bias)
