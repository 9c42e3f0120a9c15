"""The comparison's arms and its arithmetic, in a few steps."""

import math

import pytest
import torch

from tests.benchmarks.comparison import (
    ARMS,
    Run,
    interval,
    make_optimizer,
    results_table,
    train,
    tuning_table,
)
from tests.benchmarks.comparison_tasks import TASKS


@pytest.mark.parametrize("task", TASKS)
def test_arms_train_the_same_weights_with_the_same_decay(task):
    model = TASKS[task].build()
    decays = []
    for arm in ARMS:
        groups = make_optimizer(arm, 1e-3, model, TASKS[task]).param_groups
        decays.append({id(p): g["weight_decay"] for g in groups for p in g["params"]})
    assert decays[0].keys() == {id(p) for p in model.parameters()}
    assert decays[0] == decays[1] == decays[2]


@pytest.mark.parametrize("task", TASKS)
def test_weights_called_invariant_are(task):
    torch.manual_seed(0)
    task = TASKS[task]
    model = task.build()
    batch = task.batch("valid", torch.Generator().manual_seed(0))
    before = task.loss(model, batch).detach()
    declared = make_optimizer(ARMS[2], 1e-3, model, task).param_groups
    invariant = [p for g in declared if g["scale_invariant"] is not False for p in g["params"]]
    assert len(invariant) > 3
    with torch.no_grad():
        for weight in invariant:
            weight.mul_(1.7)
    assert float(task.loss(model, batch)) == pytest.approx(float(before), abs=1e-4)


@pytest.mark.parametrize("arm", ARMS)
def test_run_reports_what_it_came_to(arm):
    run = train(Run("digits", arm, 1e-2, 1), steps=3)
    assert math.isfinite(run.valid + run.test + run.growth)
    assert 0 <= run.accuracy <= 1
    assert (run.hits, run.strays) == ((None, None) if arm == "AdamW" else (1.0, run.strays))


def results_tables_name_the_best_rate_and_the_difference():
    tuned = [Run("digits", arm, lr, 1, valid=lr) for arm in ARMS for lr in (0.1, 0.2)]
    tested = [
        Run("digits", arm, 0.1, seed, test=i + seed, accuracy=0.5, growth=0.1)
        for i, arm in enumerate(ARMS)
        for seed in (1, 2)
    ]
    tuning, best = tuning_table(tuned)
    assert best == dict.fromkeys(ARMS, 0.1)
    assert "**0.1000**" in tuning
    assert "+1.0000 ± 0.0000" in results_table(tested)


def test_interval_is_students():
    mean, half = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0
    # 2.776 is the table's value for 4 degrees of freedom.
    assert half == pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5), rel=1e-3)
