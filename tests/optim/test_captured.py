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


@pytest.mark.parametrize(
    ("cls", "options", "warm", "reason"),
    [
        (AdamP, {}, 1, "counts its steps on the host; set capturable=True"),
        (SGDP, {"lr": 0.1, "momentum": 0.9}, 0, "is the first with these weights"),
        (SGDP, {"lr": 0.1}, 0, "is the first with these weights"),
        (SGDP, {"lr": 0.1, "momentum": 0.9, "state_dtype": "bfloat16"}, 1, "same random numbers"),
    ],
    ids=["count", "state", "no_plan", "noise"],
)
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
