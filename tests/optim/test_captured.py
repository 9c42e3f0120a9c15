"""Which steps a CUDA graph may repeat; without a GPU, which tests/optim/test_cuda.py needs."""

import pytest
import torch
from torch import nn

from hf_adamp import SGDP, AdamP
from hf_adamp.optim import graphs, optimizer
from tests.training import assert_identical, run_steps, snapshot


@pytest.fixture
def captured(monkeypatch):
    """A switch: from then on every step is taken for one that is captured."""
    monkeypatch.setattr(graphs, "_READ_BY_GRAPHS", [])
    return lambda: monkeypatch.setattr(optimizer, "is_captured", lambda: True)


FIRST = "is the first with these weights"
MOMENTUM = {"lr": 0.1, "momentum": 0.9}
DRAWING = {**MOMENTUM, "state_dtype": "bfloat16"}
# An optimizer, its options, the steps that it takes before, and what is wrong with the next.
WRONG = [
    pytest.param(AdamP, {}, 1, "counts its steps on the host; set capturable=True", id="count"),
    pytest.param(SGDP, MOMENTUM, 0, FIRST, id="state"),
    pytest.param(SGDP, {"lr": 0.1}, 0, FIRST, id="no_plan"),
    pytest.param(SGDP, DRAWING, 1, "same random numbers", id="noise"),
]


@pytest.mark.parametrize(("cls", "options", "warm", "reason"), WRONG)
def test_graph_that_would_repeat_the_wrong_step_is_refused(captured, cls, options, warm, reason):
    weight = nn.Parameter(torch.ones(4, 3))
    ours = cls([weight], **options)
    run_steps(ours, [[torch.ones(4, 3)]] * warm)
    before = snapshot(ours)
    captured()
    with pytest.raises(RuntimeError, match=f"CUDA graph cannot capture .*{reason}"):
        run_steps(ours, [[torch.ones(4, 3)]])
    assert_identical(snapshot(ours), before)
    assert graphs._READ_BY_GRAPHS == []


def test_what_a_graph_reads_is_kept(captured):
    weight = nn.Parameter(torch.ones(4, 3))
    ours = SGDP([weight], lr=0.1, momentum=0.9)
    run_steps(ours, [[torch.ones(4, 3)]])
    captured()
    run_steps(ours, [[torch.ones(4, 3)]])
    assert [*ours._plans.values()] == graphs._READ_BY_GRAPHS
