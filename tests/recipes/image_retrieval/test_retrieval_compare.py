"""The small run's plan, and its tables and picture from made-up results."""

import json

import pytest

from recipes.common.results import Result, ResultsFile
from recipes.image_retrieval import compare
from recipes.image_retrieval.demo import (
    DEMO_ARMS,
    EQUAL_RATE,
    RATES,
    SEARCH_SEEDS,
    SEEDS,
    VARIANTS,
    final_jobs,
    folder,
    options_of,
    search_jobs,
)


def searched():
    """Validation results whose best rate is the middle one for AdamW, the last one for AdamP."""
    best = dict(zip(DEMO_ARMS, RATES[1:], strict=False))
    return [
        Result(
            job.arm,
            job.setting,
            job.seed,
            {"validation_recall_at_1": float(job.setting["lr"] == best[job.arm])},
        )
        for job in search_jobs()
    ]


def finished(root):
    """Final results, AdamP ahead by one point, with logs of two steps."""
    results = searched()
    for job in final_jobs(results):
        ahead = 0.01 * DEMO_ARMS.index(job.arm) + 0.001 * job.seed
        measures = {f"test_recall_at_{k}": 0.8 + ahead for k in compare.KS}
        measures |= {compare.BEST: 0.9, "train_runtime": 12.0}
        for kind, growth in (("filters", 1.5), ("proxies", 2.5)):
            measures |= {f"{kind}_growth": growth, f"{kind}_projected": 0.5}
        results.append(Result(job.arm, job.setting, job.seed, measures))
        run = folder(root, job)
        run.mkdir(parents=True)
        lines = [
            {
                **{"step": step, "weight": "backbone.0.convolution.weight", "numel": 144},
                **{"rows": 16, "norm": 1.0 + step, "effective_step": 0.01, "cosine": 0.0},
            }
            for step in (1, 2)
        ]
        (run / "projection.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    file = ResultsFile(root / "results.jsonl")
    for result in results:
        file.add(result)
    return results


def test_final_jobs_take_the_rate_that_validation_chose_and_new_seeds():
    jobs = list(final_jobs(searched()))
    assert len(jobs) == len(SEEDS) * (len(VARIANTS) + 1) * len(DEMO_ARMS)
    chosen = {(job.arm, job.setting["lr"]) for job in jobs if job.setting["stage"] == "final"}
    assert chosen == set(zip(DEMO_ARMS, RATES[1:], strict=False))
    assert {j.setting["lr"] for j in jobs if j.setting["stage"] == "equal"} == {EQUAL_RATE}
    assert not set(SEEDS) & set(SEARCH_SEEDS)


def test_search_does_not_look_at_the_test_and_variants_begin_as_they_say(tmp_path):
    options = {
        (job.setting["stage"], job.setting["variant"]): options_of(tmp_path, job)
        for job in (*search_jobs(), *final_jobs(searched()))
    }
    for (stage, variant), words in options.items():
        assert ("--validation_share" in words) == (stage == "search")
        assert ("--backbone" in words) == (variant != "scratch")
        if variant != "scratch":
            frozen = words[words.index("--freeze_batch_norms") + 1]
            assert frozen == str(variant == "frozen")


def test_compare_prints_what_was_measured(tmp_path, monkeypatch, capsys):
    finished(tmp_path)
    monkeypatch.setattr("sys.argv", ["compare", str(tmp_path)])
    drawn = {}
    monkeypatch.setattr(compare, "plot_runs", lambda logs, *_, **__: drawn.update(logs))
    compare.main()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
    ]
    name = VARIANTS["live"]
    assert rows.count([name, "80.30 ± 0.16", "81.30 ± 0.16", "+1.00 ± 0.00", "5"]) == 4
    equal = f"{VARIANTS['scratch']}, both at {EQUAL_RATE:g}"
    assert sum(row[:1] == [equal] and "+1.00 ± 0.00" in row for row in rows) == 5 - 1
    growth = ["×1.50 ± 0.00", "50%", "×2.50 ± 0.00", "50%", "12"]
    assert [name, "AdamP", f"{RATES[2]:g}", *growth] in rows
    assert len(drawn) == 4
    assert all(file.is_file() for files in drawn.values() for file in files)


def test_compare_says_what_to_run_first(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["compare", str(tmp_path)])
    with pytest.raises(SystemExit, match="holds no finished run"):
        compare.main()
