"""A plan outlasts steps, holds nobody's tensors, and is made anew when something changes."""

import copy
import gc
import os
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn

from hf_adamp import AdamP
from hf_adamp.optim.backends.cpu import library
from hf_adamp.optim.plan import Plan
from tests.tables.optimizer_options import FAMILIES, families_and_paths
from tests.tolerances import assert_close
from tests.training import assert_identical, build, run_steps, snapshot
from tests.weights import generator, make_grads, make_weights

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
EVERY_PATH = pytest.mark.parametrize(("family", "path"), families_and_paths())
NATIVE = pytest.mark.skipif(library.load()[0] is None, reason="needs the native kernel")
KWARGS = {"AdamP": {"weight_decay": 0.1}, "SGDP": {"momentum": 0.9}}
# Larger than what is decided at once, so that rows are guessed.
LARGE = (300, 200)


def large_weights(device="cpu"):
    draw = generator(0)
    return [nn.Parameter(torch.randn(LARGE, generator=draw).to(device)) for _ in range(2)]


@EVERY_PATH
@pytest.mark.parametrize("reading", ["state_dict", "copy", "pickle"])
def test_reading_state_does_not_change_the_numbers_that_follow(family, path, reading):
    ways = {"state_dict": lambda o: o.state_dict(), "copy": copy.deepcopy, "pickle": pickle.dumps}
    snapshots = []
    for read in (ways[reading], lambda optimizer: None):
        weights = large_weights(path.device)
        optimizer = build(family, weights, path, **KWARGS[family.name])
        for step in range(4):
            kind = ("channel", "layer", "radial", "channel")[step]
            run_steps(optimizer, [make_grads(weights, kind, step)])
            read(optimizer)
        snapshots.append(snapshot(optimizer))
    assert_identical(*snapshots)


@EVERY_PATH
def test_resumed_run_has_the_bits_of_an_uninterrupted_one(family, path):
    weights = large_weights(path.device)
    optimizer = build(family, weights, path, **KWARGS[family.name])
    for step, kind in enumerate(("channel", "layer", "channel", "radial")):
        run_steps(optimizer, [make_grads(weights, kind, step)])
        if step == 1:
            saved = copy.deepcopy(optimizer.state_dict())
            resumed = [nn.Parameter(weight.detach().clone()) for weight in weights]
    other = build(family, resumed, path, **KWARGS[family.name])
    other.load_state_dict(saved)
    for step, kind in ((2, "channel"), (3, "radial")):
        # The gradients that the uninterrupted run had: made from its weights.
        grads = make_grads(resumed, kind, step)
        run_steps(other, [grads])
    assert_identical(snapshot(other), snapshot(optimizer))


@NATIVE
@EVERY_FAMILY
def test_gradients_that_come_and_go_leave_the_plan_as_it_is(family):
    """Layers that are dropped, experts without tokens, tasks by turns."""
    weights = list(make_weights().values())
    optimizer = build(family, weights, **KWARGS[family.name])
    run_steps(optimizer, [make_grads(weights, "mix", 0)])
    plan = optimizer._plans[()]
    for step in range(1, 8):
        grads = make_grads(weights, "mix", step)
        grads = [None if (index + step) % 3 == 0 else grad for index, grad in enumerate(grads)]
        run_steps(optimizer, [grads])
        assert optimizer._plans[()] is plan


@NATIVE
def test_weight_without_a_gradient_is_not_touched():
    weights = list(make_weights(names=["linear", "conv2d"]).values())
    optimizer = AdamP(weights, weight_decay=0.1)
    optimizer.record_steps = True
    run_steps(optimizer, [make_grads(weights, "channel", 0)])
    weights[0].grad = None
    before = snapshot(optimizer)
    optimizer.step()
    after = snapshot(optimizer)
    assert torch.equal(before[0][0], after[0][0])
    assert before[1][0]["step"] == after[1][0]["step"] == 1
    assert after[1][1]["step"] == 2
    assert [id(p) for record in optimizer.last_step for p in record.params] == [id(weights[1])]


def count_plans():
    return sum(type(thing) is Plan for thing in gc.get_objects())


@EVERY_FAMILY
def test_a_thousand_changes_leave_one_plan(family):
    """Densify and prune: other weights, in other sizes, with state that is carried over."""
    gc.collect()
    others = count_plans()
    weight = nn.Parameter(torch.ones(4, 3))
    optimizer = family.cls([weight], **{**family.base, **KWARGS[family.name]})
    gone = []
    for step in range(1000):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        gone += [weakref.ref(optimizer.state[weight][key]) for key in family.moments]
        state = optimizer.state.pop(weight)
        rows = 4 + step % 3
        weight = nn.Parameter(torch.ones(rows, 3))
        optimizer.state[weight] = {
            key: torch.ones(rows, 3) if value.ndim else value for key, value in state.items()
        }
        optimizer.param_groups[0]["params"] = [weight]
        del state
    gc.collect()
    assert count_plans() == others + 1
    assert not any(reference() is not None for reference in gone)


@EVERY_PATH
@pytest.mark.parametrize("how", ["offload", "clear"])
def test_state_that_is_moved_or_cleared_is_let_go(family, path, how):
    weights = make_weights(names=["linear"], device=path.device)
    optimizer = build(family, weights, path, **KWARGS[family.name])
    run_steps(optimizer, [make_grads(weights.values(), "channel", 1)])
    state = optimizer.state[weights["linear"]]
    watched = [weakref.ref(state[key]) for key in family.moments]
    if how == "offload":
        state.update({key: state[key].clone() for key in family.moments})
    else:
        optimizer.state.clear()
    del state
    gc.collect()
    assert not any(reference() is not None for reference in watched)


@EVERY_PATH
def test_gradient_without_memory_is_served_as_zeros(family, path):
    snapshots = []
    for lazy in (True, False):
        weights = make_weights(names=["linear", "bias"], device=path.device)
        optimizer = build(family, weights, path, **KWARGS[family.name])
        run_steps(optimizer, [make_grads(weights.values(), "channel", 1)])
        for weight in weights.values():
            weight.grad = (
                torch._efficientzerotensor(weight.shape, device=weight.device)
                if lazy
                else torch.zeros_like(weight)
            )
        optimizer.step()
        snapshots.append(snapshot(optimizer))
    assert_identical(*snapshots)


@EVERY_FAMILY
def test_weight_whose_memory_was_taken_away_is_refused(family):
    """As sharding frameworks do between steps."""
    weight = make_weights(names=["linear"])["linear"]
    optimizer = build(family, [weight], **KWARGS[family.name])
    run_steps(optimizer, [make_grads([weight], "channel", 1)])
    grad = weight.grad
    storage = weight.untyped_storage()
    size = storage.size()
    storage.resize_(0)
    with pytest.raises(RuntimeError, match="has no memory"):
        optimizer.step()
    storage.resize_(size)
    assert weight.grad is grad


@EVERY_FAMILY
def test_many_groups_with_options_of_their_own_are_one_section(family):
    weights = [nn.Parameter(torch.randn(4, 4, generator=generator(i))) for i in range(20)]
    groups = [{"params": [w], "lr": 0.01 * (i + 1)} for i, w in enumerate(weights)]
    optimizer = family.cls(groups, **{**family.base, **KWARGS[family.name]})
    kwargs = {**family.base, **KWARGS[family.name]}
    references = [
        family.reference([w], **{**kwargs, "lr": 0.01 * (i + 1)}) for i, w in enumerate(weights)
    ]
    for step in range(3):
        grads = make_grads(weights, "mix", step)
        for reference, grad in zip(references, grads, strict=True):
            reference.step([grad])
        run_steps(optimizer, [grads])
    for weight, reference in zip(weights, references, strict=True):
        assert_close(weight, reference.weights[0])
    if library.load()[0] is not None:
        assert len(optimizer._plans[()]._sections) == 1


def test_two_threads_step_two_optimizers():
    def work(seed, results):
        weights = [nn.Parameter(torch.randn(LARGE, generator=generator(seed)))]
        optimizer = AdamP(weights, weight_decay=0.1)
        for step in range(5):
            run_steps(optimizer, [make_grads(weights, "channel", step)])
        results[seed] = snapshot(optimizer)

    together, alone = {}, {}
    threads = [threading.Thread(target=work, args=(seed, together)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in (1, 2):
        work(seed, alone)
        assert_identical(together[seed], alone[seed])


def test_step_after_a_fork():
    weights = large_weights()
    optimizer = AdamP(weights)
    run_steps(optimizer, [make_grads(weights, "channel", 0)])
    grads = make_grads(weights, "channel", 1)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        run_steps(optimizer, [grads])
        os.write(writer, pickle.dumps(weights[0].detach().sum().item()))
        os._exit(0)
    os.waitpid(child, 0)
    run_steps(optimizer, [grads])
    assert pickle.loads(os.read(reader, 1000)) == weights[0].detach().sum().item()


@EVERY_FAMILY
@pytest.mark.parametrize("declared", [{"delta": 0.0}, {"scale_invariant": False}], ids=str)
def test_complex_weights_that_are_not_projected_take_torchs_step(family, declared):
    draw = generator(0)
    value = torch.randn(3, 4, dtype=torch.complex64, generator=draw)
    theirs = {"AdamP": torch.optim.AdamW, "SGDP": torch.optim.SGD}[family.name]
    kwargs = {"lr": 0.01, **({"momentum": 0.9} if family.name == "SGDP" else {})}
    kwargs |= {"weight_decay": 0.1} if family.name == "AdamP" else {}
    ours, expected = nn.Parameter(value.clone()), nn.Parameter(value.clone())
    optimizers = family.cls([ours], **kwargs, **declared), theirs([expected], **kwargs)
    for _ in range(3):
        grad = torch.randn(3, 4, dtype=torch.complex64, generator=draw)
        for weight, optimizer in zip((ours, expected), optimizers, strict=True):
            weight.grad = grad.clone()
            optimizer.step()
    assert torch.allclose(ours, expected, rtol=1e-6, atol=1e-7)


def test_complex_weight_whose_gradient_comes_later_takes_torchs_step():
    draw = generator(3)
    values = [torch.randn(3, 4, dtype=d, generator=draw) for d in (torch.float32, torch.complex64)]
    ours, theirs = ([nn.Parameter(v.clone()) for v in values] for _ in range(2))
    optimizer = AdamP(ours, lr=0.01, weight_decay=0.1, scale_invariant=False)
    reference = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1)
    for step in range(4):
        for at in range(2 if step else 1):
            grad = torch.randn(3, 4, dtype=values[at].dtype, generator=draw)
            ours[at].grad, theirs[at].grad = grad.clone(), grad.clone()
        optimizer.step()
        reference.step()
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-6)


def test_complex_weight_that_could_be_projected_says_how_to_leave_it_out():
    with pytest.raises(TypeError, match=r"complex.*delta=0 or scale_invariant=False"):
        AdamP([nn.Parameter(torch.ones(3, 3, dtype=torch.complex64))])
