import math

import numpy as np
import pytest
from scipy import stats

from recipes.common.paired import PairedRow, choose, paired_difference, paired_table, select
from recipes.common.results import Result
from recipes.common.weight_growth import measure_growth


def runs(arm, values, **setting):
    return [Result(arm, setting, s, {"accuracy": v}) for s, v in enumerate(values, 1)]


def test_difference_has_the_standard_error_of_a_paired_t_test():
    a, b = np.random.default_rng(0).normal(size=(2, 5))
    difference = paired_difference(runs("sgd", a), runs("sgdp", b), "accuracy")
    test = stats.ttest_rel(b, a)
    assert difference.mean == pytest.approx((b - a).mean())
    assert difference.mean / difference.standard_error == pytest.approx(test.statistic)
    assert difference.seeds == 5


def test_difference_pairs_seeds_whatever_their_order():
    baseline, contender = runs("sgd", [1, 2, 3]), runs("sgdp", [2, 3, 4])[::-1]
    assert paired_difference(baseline, contender, "accuracy")[:2] == (1, 0)


def test_difference_counts_the_seeds_that_both_have():
    difference = paired_difference(runs("sgd", [1, 2]), runs("sgdp", [3]), "accuracy")
    assert (difference.mean, difference.seeds) == (2, 1)
    assert math.isnan(difference.standard_error)
    assert difference.format(1) == "+2.0"


def test_difference_without_a_common_seed_is_refused():
    with pytest.raises(ValueError, match="no seed in common"):
        paired_difference(runs("sgd", [1]), runs("sgdp", [1, 2])[1:], "accuracy")


def test_difference_of_mixed_settings_is_refused():
    both = runs("sgd", [1], lr=1) + runs("sgd", [1], lr=2)
    with pytest.raises(ValueError, match="select one setting"):
        paired_difference(both, runs("sgdp", [1]), "accuracy")


def test_choose_takes_the_best_mean_over_seeds():
    results = runs("sgd", [0.1, 0.9], lr=1) + runs("sgd", [0.6, 0.6], lr=2)
    results += runs("sgdp", [1.0], lr=3)
    assert choose(results, "sgd", "accuracy") == {"lr": 2}
    assert choose(results, "sgd", "accuracy", largest=False) == {"lr": 1}
    assert choose(results, "sgd", "accuracy", among={"lr": 1}) == {"lr": 1}


@pytest.mark.parametrize("largest", [True, False])
def test_choose_never_takes_a_run_that_diverged(largest):
    results = runs("sgd", [math.nan], lr=1) + runs("sgd", [0.5], lr=2)
    assert choose(results, "sgd", "accuracy", largest=largest) == {"lr": 2}


def test_choose_without_a_run_is_refused():
    with pytest.raises(ValueError, match="no run of arm='sgd'"):
        choose([], "sgd", "accuracy")


def test_select_takes_settings_that_hold_what_is_asked():
    results = runs("sgd", [1, 2], lr=1, batch=8)[::-1] + runs("sgd", [3], lr=2, batch=8)
    assert [r.seed for r in select(results, "sgd", {"lr": 1})] == [1, 2]
    assert len(select(results, "sgd", {"batch": 8})) == 3


def test_table_shows_both_arms_and_their_difference():
    row = PairedRow("lr 1", runs("adamw_torch", [0.5, 0.7]), runs("adamp", [0.6, 0.9]))
    lines = paired_table([row], "accuracy", title="%", decimals=1, scale=100).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["%", "AdamW", "AdamP", "AdamP − AdamW, ± se", "seeds"]
    assert cells[2] == ["lr 1", "60.0 ± 14.1", "75.0 ± 21.2", "+15.0 ± 5.0", "2"]


def test_growth_is_from_the_first_logged_step_to_the_last():
    rows = [{"weight_norm": n, "effective_step": e} for n, e in ((2, 0.3), (3, 0.2), (5, 0.1))]
    growth = measure_growth(rows)
    assert growth == pytest.approx(
        {"first_norm": 2, "last_norm": 5, "growth": 2.5, "effective_step": 0.2}
    )
