"""What a training loop does around a step: closures, hooks, groups, schedulers, copies, scaling."""

import copy
import pickle

import pytest
import torch
from torch import nn

from hf_adamp import AdamP
from hf_adamp.optim.backends.torch_ops import foreach
from hf_adamp.optim.layout import Layout
from tests.tables.optimizer_options import ADAMP, FAMILIES, SGDP_, families_and_paths
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
from tests.weights import SHAPES, make_grads, make_weights

EVERY_PATH = pytest.mark.parametrize(("family", "path"), families_and_paths())
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
KWARGS = {
    "AdamP": {"weight_decay": 0.1},
    "SGDP": {"momentum": 0.9, "weight_decay": 0.01},
}
NAMES = ["linear", "bias", "conv2d", "scalar"]


def started(family, path=None, names=NAMES, steps=2, **kwargs):
    """An optimizer some steps into training."""
    weights = make_weights(names=names, device=path.device if path else "cpu")
    optimizer = build(family, weights, path, **{**KWARGS[family.name], **kwargs})
    train(optimizer, range(1, steps + 1))
    return optimizer


def train(optimizer, steps):
    for step in steps:
        run_steps(optimizer, [make_grads(params_of(optimizer), "mix", step)])


@EVERY_FAMILY
def test_step_returns_the_loss_of_its_closure_evaluated_with_gradients(family):
    model = nn.Linear(4, 1)
    optimizer = build(family, model.parameters())
    inputs = torch.randn(8, 4)
    modes = []

    def closure():
        modes.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        return loss

    with torch.no_grad():
        losses = [float(optimizer.step(closure)) for _ in range(30)]
    assert modes == [True] * 30
    assert losses[-1] < losses[0]
    assert optimizer.step() is None


@EVERY_FAMILY
def test_hooks_run_around_a_step(family):
    optimizer = started(family)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    train(optimizer, [3])
    assert seen == ["before", "after"]


@EVERY_FAMILY
def test_weight_without_gradient_is_left_alone(family):
    weights = make_weights(names=NAMES)
    optimizer = build(family, weights, **KWARGS[family.name])
    before = weights["linear"].detach().clone()
    grads = make_grads(weights.values(), "mix", 1)
    run_steps(optimizer, [[None, *grads[1:]]])
    assert torch.equal(weights["linear"], before)
    assert not optimizer.state[weights["linear"]]
    run_steps(optimizer, [[None] * len(NAMES)])
    assert torch.equal(weights["linear"], before)


@EVERY_PATH
def test_weights_with_late_or_missing_gradients_count_their_own_steps(family, path):
    names = list(SHAPES)
    kwargs = {**family.base, **KWARGS[family.name]}
    weights = make_weights(device=path.device)
    reference = family.reference(weights.values(), **kwargs)
    optimizer = build(family, weights, path, **KWARGS[family.name])
    for step in range(1, 9):
        grads = make_grads(reference.weights, "mix", step)
        # Some begin late, some pause, one is there all the time.
        grads = [
            grad.float() if step > index % 4 and (step + index) % 3 else None
            for index, grad in enumerate(grads)
        ]
        reference.step(grads)
        run_steps(optimizer, [grads])
    expected = (reference.weights, reference.state)
    assert_same(family, snapshot(optimizer), expected, names=names)
    if family is ADAMP:
        counts = {float(optimizer.state[weight]["step"]) for weight in weights.values()}
        assert len(counts) > 2


@EVERY_PATH
def test_groups_have_options_of_their_own(family, path):
    options = [
        {"lr": 1e-2, "weight_decay": 0.1, "delta": 0.0},
        {"lr": 3e-3, "weight_decay": 0.0, "delta": 0.3, "eps": 1e-4},
        {"lr": 5e-3, "weight_decay": 0.2, "delta": 1.5, "wd_ratio": 0.5, "maximize": True},
    ]
    together = [make_weights(device=path.device, seed=s) for s in range(3)]
    groups = [{"params": list(w.values()), **o} for w, o in zip(together, options, strict=True)]
    optimizer = build(family, groups[:2], path)
    optimizer.add_param_group(groups[2])
    references = [
        family.reference(w.values(), **{**family.base, **o})
        for w, o in zip(together, options, strict=True)
    ]
    for step in range(1, 6):
        grads = [[g.float() for g in make_grads(r.weights, "mix", step)] for r in references]
        run_steps(optimizer, [[g for group in grads for g in group]])
        for reference, of_group in zip(references, grads, strict=True):
            reference.step(of_group)
    expected = (
        [w for r in references for w in r.weights],
        [s for r in references for s in r.state],
    )
    assert_same(family, snapshot(optimizer), expected, names=list(SHAPES) * 3)


@EVERY_FAMILY
def test_changing_delta_eps_or_wd_ratio_of_a_group_takes_effect(family):
    """What is laid out once must notice options that change between steps."""
    for change in ({"delta": 0.0}, {"eps": 0.5}, {"wd_ratio": 1.0}, {"weight_decay": 0.05}):
        optimizer = started(family)
        weights = params_of(optimizer)
        reference = family.reference(weights, **{**family.base, **KWARGS[family.name], **change})
        reference.state = [
            {k: v.double() if k != "step" else int(v) for k, v in state.items()}
            for state in snapshot(optimizer)[1]
        ]
        optimizer.param_groups[0].update(change)
        grads = make_grads(weights, "channel", 3)
        reference.step(grads)
        run_steps(optimizer, [grads])
        for ours, theirs in zip(weights, reference.weights, strict=True):
            assert_close(ours, theirs, what=str(change))


@EVERY_FAMILY
def test_empty_group_is_harmless(family):
    weights = make_weights(names=["linear"])
    optimizer = build(family, [{"params": []}, {"params": list(weights.values())}])
    before = weights["linear"].detach().clone()
    run_steps(optimizer, [make_grads(weights.values(), "channel", 1)])
    assert not torch.equal(weights["linear"], before)


@EVERY_FAMILY
def test_named_parameters_keep_their_names_and_appear_in_messages(family):
    weight = nn.Parameter(torch.randn(3, 2))
    optimizer = build(family, [("layers.0.weight", weight)])
    weight.grad = torch.randn(3, 2).to_sparse()
    with pytest.raises(RuntimeError, match=r"layers\.0\.weight has a sparse gradient"):
        optimizer.step()


SCHEDULERS = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, gamma=0.5),
    "warmup": lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=5),
    "one_cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.02, total_steps=20),
    "lambda_zero": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: step % 2),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@EVERY_PATH
def test_schedulers_steer_the_step(family, path, scheduler):
    """OneCycleLR moves beta1 or momentum as well."""
    weights = make_weights(device=path.device)
    optimizer = build(family, weights, path, **KWARGS[family.name])
    schedule = SCHEDULERS[scheduler](optimizer)
    reference = family.reference(weights.values(), **KWARGS[family.name])
    for step in range(1, 11):
        group = optimizer.param_groups[0]
        reference.options.update({k: group[k] for k in reference.options})
        grads = [g.float() for g in make_grads(reference.weights, "mix", step)]
        reference.step(grads)
        run_steps(optimizer, [grads])
        schedule.step()
    expected = (reference.weights, reference.state)
    assert_same(family, snapshot(optimizer), expected, names=list(SHAPES))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@EVERY_PATH
def test_copy_continues_bit_for_bit(family, path, duplicate):
    optimizer = started(family, path)
    twin = duplicate(optimizer)
    assert_identical(snapshot(twin), snapshot(optimizer))
    train(optimizer, [3, 4])
    train(twin, [3, 4])
    assert_identical(snapshot(twin), snapshot(optimizer))
    assert twin.param_groups[0].keys() == optimizer.param_groups[0].keys()


@EVERY_FAMILY
def test_pickle_from_before_an_option_existed_gets_its_default(family):
    optimizer = started(family)
    for name in ("maximize", "foreach", "capturable", "differentiable", "fused"):
        del optimizer.param_groups[0][name]
    twin = pickle.loads(pickle.dumps(optimizer))
    train(twin, [3])
    assert twin.param_groups[0]["maximize"] is False
    assert twin.param_groups[0]["fused"] is None


@EVERY_FAMILY
def test_grad_scaler_scales_steps_and_skips_overflow(family):
    weights = make_weights(names=NAMES)
    plain = build(family, make_weights(names=NAMES), **KWARGS[family.name])
    optimizer = build(family, weights, **KWARGS[family.name])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(torch.ones(()))
    for step in range(1, 6):
        grads = make_grads(params_of(plain), "mix", step)
        scale = scaler.get_scale()
        before = snapshot(optimizer)
        set_grads(weights.values(), [grad * scale for grad in grads])
        if step == 3:
            weights["bias"].grad[0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        if step == 3:
            assert_identical(snapshot(optimizer), before)
            assert scaler.get_scale() < scale
        else:
            run_steps(plain, [grads])
    assert_same(family, snapshot(optimizer), snapshot(plain), names=NAMES)


@pytest.mark.parametrize("foreach", [None, False])
@EVERY_FAMILY
def test_learning_rate_may_be_a_tensor(family, foreach):
    expected = started(family, lr=0.01, foreach=foreach)
    lr = torch.tensor(0.01)
    actual = started(family, lr=lr, foreach=foreach)
    assert_same(family, snapshot(actual), snapshot(expected), names=NAMES)
    lr.fill_(0.0)
    before = snapshot(actual)[0]
    train(actual, [3])
    assert all(map(torch.equal, snapshot(actual)[0], before))


@pytest.mark.parametrize("foreach", [None, False])
def test_betas_may_be_tensors(foreach):
    expected = started(ADAMP, betas=(0.8, 0.95), foreach=foreach)
    betas = (torch.tensor(0.8), torch.tensor(0.95))
    actual = started(ADAMP, betas=betas, foreach=foreach)
    assert_same(ADAMP, snapshot(actual), snapshot(expected), names=NAMES)


def test_sgdp_takes_a_tensor_learning_rate_with_foreach():
    expected = started(SGDP_, lr=0.01, foreach=True)
    actual = started(SGDP_, lr=torch.tensor(0.01), foreach=True)
    assert_same(SGDP_, snapshot(actual), snapshot(expected), names=NAMES)


@EVERY_FAMILY
def test_zero_grad_and_repr_are_torchs(family):
    optimizer = started(family)
    assert f"{family.name} (" in repr(optimizer)
    assert "delta: 0.1" in repr(optimizer)
    optimizer.zero_grad()
    assert all(param.grad is None for param in params_of(optimizer))
    optimizer.step()


@EVERY_PATH
def test_frozen_weight_can_be_thawed(family, path):
    """A step's layout follows the set of weights that take part."""
    weights = make_weights(device=path.device, names=NAMES)
    reference = family.reference(weights.values(), **{**family.base, **KWARGS[family.name]})
    optimizer = build(family, weights, path, **KWARGS[family.name])
    for step, frozen in enumerate([(0,), (), (2,), (0, 2), (), (0,)], start=1):
        grads = [g.float() for g in make_grads(reference.weights, "channel", step)]
        grads = [None if index in frozen else grad for index, grad in enumerate(grads)]
        reference.step(grads)
        run_steps(optimizer, [grads])
    expected = (reference.weights, reference.state)
    assert_same(family, snapshot(optimizer), expected, names=NAMES)


def test_layouts_of_a_model_of_many_chunks_are_built_once(monkeypatch):
    monkeypatch.setattr(foreach, "_CPU_CHUNK_ELEMENTS", 4)
    built = []
    build_layout = Layout.build
    monkeypatch.setattr(Layout, "build", lambda *a, **k: built.append(1) or build_layout(*a, **k))
    weights = [torch.nn.Parameter(torch.ones(2, 2)) for _ in range(200)]
    optimizer = AdamP(weights, foreach=True)
    counts = []
    for _ in range(4):
        run_steps(optimizer, [[torch.ones(2, 2)] * len(weights)])
        counts.append(len(built))
    assert counts[0] == 200
    assert counts[2:] == [counts[1]] * 2
