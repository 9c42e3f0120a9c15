"""The small run's plan, and its tables and picture from made-up results."""

import json

import pytest

from recipes.common.results import Result, ResultsFile
from recipes.rebias import compare
from recipes.rebias.demo import (
    DEMO_ARMS,
    RHOS,
    SEARCH_SEEDS,
    SEEDS,
    final_jobs,
    folder,
    search_jobs,
)


def searched():
    """Validation results whose best rate is another one for each arm."""
    best = dict(zip(DEMO_ARMS, (3e-3, 1e-2, 3e-2), strict=True))
    return [
        Result(
            job.arm,
            job.setting,
            job.seed,
            {"validation_unbiased": job.setting["lr"] == best[job.arm]},
        )
        for job in search_jobs()
    ]


def finished(root):
    """Final results of all arms, AdamP ahead by 2 points and AdamW by 1, with histories."""
    results = searched()
    for job in final_jobs(results):
        ahead = 0.01 * DEMO_ARMS.index(job.arm) + 0.001 * job.seed
        measures = {
            "test_unbiased": 0.6 + ahead,
            "best_epoch_test_unbiased": 0.7,
            "test_biased": 1.0,
        }
        measures |= {"f_growth": 1.5, "g_growth": 1.25}
        results.append(Result(job.arm, job.setting, job.seed, measures))
        lines = [{"test_unbiased": 0.1 * epoch, "hsic": 0.05} for epoch in (1, 2)]
        run = folder(root, job)
        run.mkdir(parents=True)
        (run / "history.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    file = ResultsFile(root / "results.jsonl")
    for result in results:
        file.add(result)
    return results


def test_final_jobs_take_the_rate_that_validation_chose_and_new_seeds():
    jobs = list(final_jobs(searched()))
    assert len(jobs) == len(SEEDS) * len(RHOS) * len(DEMO_ARMS)
    assert {job.arm: job.setting["lr"] for job in jobs} == {
        "adam_l2": 3e-3,
        "adamw_torch": 1e-2,
        "adamp": 3e-2,
    }
    assert not set(SEEDS) & set(SEARCH_SEEDS)


def test_compare_prints_and_draws_what_was_measured(tmp_path, monkeypatch, capsys):
    finished(tmp_path)
    monkeypatch.setattr("sys.argv", ["compare", str(tmp_path)])
    compare.main()
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")] for line in printed.splitlines()]
    growth = ["×1.50 ± 0.00", "×1.25 ± 0.00"]
    row = ["", "AdamP", "0.03", "62.3 ± 0.2", "70.0 ± 0.0", "100.0 ± 0.0", *growth, ""]
    assert rows.count(row) == len(RHOS)
    # AdamP is 2 points ahead of Adam with L2 and 1 of AdamW, whatever the seed.
    assert sum("+2.0 ± 0.0" in row for row in rows) == len(RHOS)
    assert sum("+1.0 ± 0.0" in row for row in rows) == len(RHOS)
    assert (tmp_path / "comparison.png").stat().st_size > 10_000


def test_compare_says_what_to_run_first(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["compare", str(tmp_path)])
    with pytest.raises(SystemExit, match="holds no finished run"):
        compare.main()
