"""A run in two stages: what is left to do, what is chosen, and the table of it."""

import dataclasses

from recipes.common.results import Result, ResultsFile
from recipes.common.two_stages import chosen_rate, final_runs, run_stages, search_table

ARMS, RATES = ("adamw_torch", "adamp"), (0.1, 0.2)
BEST = {"adamw_torch": 0.1, "adamp": 0.2}


def search_jobs():
    return [Result(arm, {"lr": rate, "stage": "search"}, 9) for rate in RATES for arm in ARMS]


def final_jobs(results):
    return [
        Result(arm, {"lr": chosen_rate(results, arm, "score"), "stage": "final"}, seed)
        for seed in (1, 2)
        for arm in ARMS
    ]


def measure(root, job):
    return dataclasses.replace(job, measures={"score": 0.5 + (job.setting["lr"] == BEST[job.arm])})


def run(monkeypatch, *options):
    monkeypatch.setattr("sys.argv", ["demo", *map(str, options)])
    run_stages("A run.", search_jobs=search_jobs, final_jobs=final_jobs, measure=measure)


def test_run_stages_does_each_job_once_whatever_the_parts(tmp_path, monkeypatch, capsys):
    file = ResultsFile(tmp_path / "results.jsonl")
    run(monkeypatch, tmp_path, "--stage", "search", "--part", 0, "--of", 2)
    assert {result.arm for result in file.read()} == {"adamw_torch"}
    run(monkeypatch, tmp_path, "--stage", "search")
    assert len(file.read()) == 4
    for part in (0, 1, 0):
        run(monkeypatch, tmp_path, "--stage", "final", "--part", part, "--of", 2)
    assert len(file.read()) == 8
    assert capsys.readouterr().out.count("== ") == 8


def test_final_runs_have_the_chosen_rate(tmp_path, monkeypatch):
    for stage in ("search", "final"):
        run(monkeypatch, tmp_path, "--stage", stage)
    results = ResultsFile(tmp_path / "results.jsonl").read()
    for arm in ARMS:
        runs = final_runs(results, arm)
        assert [job.seed for job in runs] == [1, 2]
        assert {job.setting["lr"] for job in runs} == {BEST[arm]}
        assert not final_runs(results, arm, lr=0.3)


def test_search_table_marks_the_best():
    table = search_table([measure(None, job) for job in search_jobs()], ARMS, RATES, "score", "%")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["%", "rate 0.1", "rate 0.2"]
    assert rows[2:] == [["AdamW", "**150.0**", "50.0"], ["AdamP", "50.0", "**150.0**"]]
