"""Records of a step against what weights, gradients and the reference say directly."""

import math

import pytest
import torch
from torch import nn

from tests.references import LAYER, cosines
from tests.tables.optimizer_options import FAMILIES, families_and_paths
from tests.tolerances import assert_close
from tests.training import assert_same, build, run_steps, snapshot
from tests.weights import SHAPES, make_grads, make_weights

EVERY_PATH = pytest.mark.parametrize(("family", "path"), families_and_paths())
KWARGS = {
    "AdamP": {"weight_decay": 0.1},
    "SGDP": {"momentum": 0.9, "weight_decay": 0.01},
}
MATRICES = [name for name, shape in SHAPES.items() if len(shape) > 1 and 0 not in shape]
VALUES = (
    "view",
    "max_cosine",
    "channel_margin",
    "layer_margin",
    "weight_norm",
    "update_norm",
    "radial_share",
)


def by_param(optimizer):
    """Weight → the values of its record; every weight has one record only."""
    values = {}
    for record in optimizer.last_step:
        for index, param in enumerate(record.params):
            assert param not in values
            values[param] = {name: getattr(record, name)[index].cpu() for name in VALUES}
    return values


def expected_record(family, weight, grad, reference, index, kwargs):
    """The same values from one weight, its gradient and the reference before its step."""
    w, g = weight.double().reshape(len(weight), -1), grad.double().reshape(len(weight), -1)
    state = dict(reference.state[index])
    update = family.reference([weight], **kwargs).direction(grad.double(), state)
    norm, step = w.norm(), update.norm()
    radial = (update.reshape_as(w) * w).sum().abs() / (norm * step)
    max_cosine = cosines(w, g).max()
    return {
        "max_cosine": max_cosine,
        "channel_margin": max_cosine * math.sqrt(w.shape[1]),
        "layer_margin": cosines(w.reshape(1, -1), g.reshape(1, -1))[0] * math.sqrt(w.numel()),
        "weight_norm": norm,
        "radial_share": radial.nan_to_num(0.0),
    }


@EVERY_PATH
def test_record_says_what_the_step_did(family, path):
    weights = make_weights(device=path.device)
    params = list(weights.values())
    kwargs = {**family.base, **KWARGS[family.name]}
    reference = family.reference(params, **kwargs)
    optimizer = build(family, weights, path, **KWARGS[family.name])
    optimizer.record_steps = True
    for step in range(1, 6):
        before = [param.detach().cpu().clone() for param in params]
        grads = [g.float() for g in make_grads(reference.weights, "mix", step)]
        expected = {
            name: expected_record(family, before[i], grads[i], reference, i, kwargs)
            for i, name in enumerate(weights)
            if name in MATRICES
        }
        reference.step(grads)
        run_steps(optimizer, [grads])
        records = by_param(optimizer)
        assert set(records) == {weights[name] for name in MATRICES}
        for i, (name, weight) in enumerate(weights.items()):
            if name not in MATRICES:
                continue
            record = records[weight]
            assert record["view"] == reference.views[i], name
            moved = (weight.detach().cpu() - before[i]).double().norm()
            assert_close(record["update_norm"], moved, what=f"update_norm of {name}")
            for key, value in expected[name].items():
                assert_close(record[key], value, dtype=torch.float32, what=f"{key} of {name}")


@EVERY_PATH
def test_recording_changes_round_off_at_most(family, path):
    runs = []
    for recording in (True, False):
        optimizer = build(family, make_weights(device=path.device), path, **KWARGS[family.name])
        optimizer.record_steps = recording
        reference = list(make_weights().values())
        for step in range(1, 6):
            run_steps(optimizer, [make_grads(reference, "mix", step)])
        runs.append(snapshot(optimizer))
    assert_same(family, *runs, names=list(SHAPES))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_nothing_is_recorded_unless_asked_for(family):
    weights = make_weights()
    optimizer = build(family, weights)
    assert optimizer.record_steps is False
    run_steps(optimizer, [make_grads(weights.values(), "mix", 1)])
    assert optimizer.last_step == []


@EVERY_PATH
def test_record_holds_only_weights_that_took_part(family, path):
    weights = make_weights(device=path.device)
    optimizer = build(family, weights, path)
    optimizer.record_steps = True
    grads = make_grads(weights.values(), "layer", 1)
    grads[list(weights).index("linear")] = None
    run_steps(optimizer, [grads])
    assert set(by_param(optimizer)) == {weights[n] for n in MATRICES if n != "linear"}
    run_steps(optimizer, [[None] * len(weights)])
    assert optimizer.last_step == []


@EVERY_PATH
def test_record_spans_groups_with_deltas_of_their_own(family, path):
    """The same weight and gradient: one group's delta projects it, the other's does not."""
    weights = [make_weights(names=["linear"], device=path.device)["linear"] for _ in range(2)]
    groups = [{"params": [w], "delta": d} for w, d in zip(weights, (0.0, 0.1), strict=True)]
    optimizer = build(family, groups, path)
    optimizer.record_steps = True
    run_steps(optimizer, [make_grads(weights[:1], "layer", 1) * 2])
    records = by_param(optimizer)
    assert [int(records[weight]["view"]) for weight in weights] == [0, LAYER]
    assert records[weights[0]]["layer_margin"] == records[weights[1]]["layer_margin"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@EVERY_PATH
def test_record_of_a_non_finite_gradient_shows_no_view(family, path, value):
    weight = nn.Parameter(torch.randn(4, 3, device=path.device))
    optimizer = build(family, [weight], path)
    optimizer.record_steps = True
    grad = make_grads([weight], "channel", 1)[0]
    grad[1, 1] = value
    run_steps(optimizer, [[grad]])
    (record,) = by_param(optimizer).values()
    assert record["view"] == 0
    assert not record["max_cosine"] < 1
