import dataclasses
import json

import pytest

from recipes.common.results import Result, ResultsFile


def test_results_are_read_as_they_were_added(tmp_path):
    file = ResultsFile(tmp_path / "new" / "grid.jsonl")
    assert file.read() == []
    results = [Result("adamp", {"lr": 0.1}, seed, {"test_accuracy": 0.9}) for seed in (1, 2)]
    for result in results:
        file.add(result)
    assert file.read() == results


def test_missing_are_the_jobs_without_a_result_each_once(tmp_path):
    file = ResultsFile(tmp_path / "grid.jsonl")
    jobs = [Result("adamp", {"lr": 0.1, "batch": 8}, seed) for seed in (1, 2, 2)]
    # The same setting in another order is the same run.
    file.add(Result("adamp", {"batch": 8, "lr": 0.1}, 1, {"loss": 1.0}))
    assert file.missing(jobs) == [jobs[1]]
    file.add(dataclasses.replace(jobs[1], measures={"loss": 1.0}))
    assert file.missing(jobs) == []


def test_repeated_run_is_refused(tmp_path):
    file = ResultsFile(tmp_path / "grid.jsonl")
    file.add(Result("adamp", {}, 1))
    file.add(Result("adamp", {}, 1))
    with pytest.raises(ValueError, match="line 2 repeats"):
        file.read()


@pytest.mark.parametrize("line", ["{", json.dumps({"arm": "adamp"}), json.dumps({"a": 1})])
def test_line_that_is_no_result_is_named(tmp_path, line):
    path = tmp_path / "grid.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"grid\.jsonl, line 1 is no result"):
        ResultsFile(path).read()
