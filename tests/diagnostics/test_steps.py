"""Readers of what a step did, held against numbers worked out by hand."""

import math

import pytest
import torch

from hf_adamp import SGDP, AdamP
from hf_adamp.diagnostics.steps import RecordedSteps, SnapshotSteps, summarize, watch


def make_weights():
    """A convolution that will be projected, a matrix that will not, and a bias."""
    torch.manual_seed(0)
    conv, matrix = torch.randn(8, 4, 3, 3), torch.randn(5, 6)
    weights = [torch.nn.Parameter(t) for t in (conv, matrix, torch.randn(5))]
    return weights


def set_gradients(weights):
    conv, matrix, bias = weights
    rows = conv.detach().flatten(1)
    noise = torch.randn_like(rows)
    # Orthogonal to each row: what a weight before a BatchNorm gets.
    conv.grad = (
        noise - rows * (noise * rows).sum(1, keepdim=True) / rows.square().sum(1, keepdim=True)
    ).view_as(conv)
    matrix.grad = matrix.detach() + 0.1 * torch.randn_like(matrix)
    bias.grad = torch.randn_like(bias)


def take_steps(reader, weights, count, *, wanted=True):
    for _ in range(count):
        set_gradients(weights)
        reader.before_step(wanted=wanted)
        reader.optimizer.step()
        reader.after_step()


def test_watch_reads_records_where_the_optimizer_offers_them():
    assert isinstance(watch(AdamP(make_weights())), RecordedSteps)
    assert isinstance(watch(SGDP(make_weights(), lr=0.1)), RecordedSteps)
    assert isinstance(watch(torch.optim.AdamW(make_weights())), SnapshotSteps)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        pytest.param(lambda w: AdamP(w, lr=0.01, weight_decay=0.1), id="adamp"),
        pytest.param(lambda w: AdamP(w, lr=0.01, nesterov=True), id="adamp-nesterov"),
        pytest.param(lambda w: SGDP(w, lr=0.1, momentum=0.9, weight_decay=0.1), id="sgdp"),
        pytest.param(lambda w: SGDP(w, lr=0.1, momentum=0.9, nesterov=True), id="sgdp-nesterov"),
    ],
)
def test_recorded_norms_match_a_snapshot_of_the_same_step(make_optimizer):
    weights = make_weights()
    optimizer = make_optimizer(weights)
    recorded, measured = RecordedSteps(optimizer), SnapshotSteps(optimizer)
    for _ in range(3):
        set_gradients(weights)
        measured.before_step(wanted=True)
        optimizer.step()
        recorded.after_step()
        measured.after_step()
        read, expected = dict(recorded.read()), dict(measured.read())
        assert len(expected) == 2
        assert read.keys() == expected.keys()
        for weight, row in expected.items():
            for key in ("weight_norm", "effective_step"):
                # float32 sums of a hundred squares, added in another order
                assert read[weight][key] == pytest.approx(row[key], rel=1e-4)


def test_recorded_views_tell_the_projected_weight_from_the_other():
    weights = make_weights()
    reader = RecordedSteps(AdamP(weights, lr=0.01))
    take_steps(reader, weights, 1)
    rows = {id(weight): row for weight, row in reader.read()}
    conv, matrix, bias = (rows.get(id(weight)) for weight in weights)
    assert (conv["view"], conv["projected_channel"], conv["projected_layer"]) == ("channel", 1, 0)
    assert (matrix["view"], matrix["projected_channel"], matrix["projected_layer"]) == (
        "none",
        0,
        0,
    )
    assert bias is None
    assert conv["channel_margin"] < 0.1 < matrix["channel_margin"]


def test_recorded_shares_count_every_step_since_the_last_read():
    weights = make_weights()
    conv = weights[0]
    reader = RecordedSteps(AdamP(weights, lr=0.0))
    take_steps(reader, weights, 3)
    set_gradients(weights)
    conv.grad = conv.detach().clone()  # cosine 1: not projected
    reader.optimizer.step()
    reader.after_step()
    assert next(row for w, row in reader.read() if w is conv)["projected_channel"] == 0.75
    take_steps(reader, weights, 2)
    assert next(row for w, row in reader.read() if w is conv)["projected_channel"] == 1.0


def test_recorded_shares_survive_a_weight_that_joins_late():
    weights = make_weights()
    reader = RecordedSteps(AdamP(weights, lr=0.01))
    set_gradients(weights)
    weights[1].grad = None
    reader.optimizer.step()
    reader.after_step()
    take_steps(reader, weights, 1)
    assert len(reader.read()) == 2


def test_close_leaves_recording_as_it_was():
    optimizer = AdamP(make_weights())
    reader = RecordedSteps(optimizer)
    assert optimizer.record_steps is True
    reader.close()
    assert optimizer.record_steps is False
    optimizer.record_steps = True
    RecordedSteps(optimizer).close()
    assert optimizer.record_steps is True


def test_snapshot_is_taken_only_where_it_is_wanted():
    weights = make_weights()
    reader = SnapshotSteps(torch.optim.AdamW(weights))
    take_steps(reader, weights, 2, wanted=False)
    assert reader.read() == []


def test_snapshot_measures_plain_descent():
    weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    reader = SnapshotSteps(torch.optim.SGD([weight], lr=0.1))
    weight.grad = torch.tensor([[0.0, 5.0]])
    reader.before_step(wanted=True)
    reader.optimizer.step()
    reader.after_step()
    ((read, row),) = reader.read()
    assert read is weight
    assert row["weight_norm"] == pytest.approx(5.0)
    assert row["effective_step"] == pytest.approx(0.1)


def test_summary_is_the_norm_of_all_weights_as_one_vector():
    names = ("weight_norm", "update_norm", "effective_step", "projected_channel", "channel_margin")
    rows = [
        dict(zip(names, values, strict=True))
        for values in [
            (3.0, 0.3, 0.1, 1.0, 0.01),
            (4.0, 0.8, 0.2, 0.5, 0.02),
            (0.0, 0.1, math.nan, 0.0, 9.0),
        ]
    ]
    summary = summarize(rows)
    assert summary["update_norm"] == pytest.approx(math.hypot(0.3, 0.8))
    assert summary["channel_margin"] == 0.02
    assert summary["weight_norm"] == pytest.approx(5.0)
    assert summary["effective_step"] == pytest.approx(math.hypot(0.3, 0.8) / 5.0)
    assert summary["projected_channel"] == pytest.approx(0.75)
    assert "projected_layer" not in summary


def test_summary_of_no_weight_is_empty():
    assert summarize([]) == {}
