"""Pictures of ProjectionLog's files."""

import json
import math
import sys

import pytest

from hf_adamp.diagnostics import plot_runs
from hf_adamp.diagnostics.plots import read_run

PNG = b"\x89PNG\r\n\x1a\n"


def write_run(path, *, shift=0.0, steps=5):
    with path.open("w") as file:
        for step in range(1, steps + 1):
            row = {"step": step, "loss": math.exp(-step) + shift, "weight_norm": 40 + step}
            row["effective_step"] = None if step == 2 else 0.01 / step
            file.write(json.dumps({**row, "weight": None}) + "\n")
            file.write(json.dumps({**row, "weight": "conv.weight"}) + "\n")
    return path


def test_read_run_keeps_the_lines_of_the_whole_model(tmp_path):
    rows = read_run(write_run(tmp_path / "run.jsonl"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert all(row["weight"] is None for row in rows)


def test_plot_of_one_file_and_of_seeds_writes_a_picture(tmp_path):
    one = write_run(tmp_path / "one.jsonl")
    seeds = [write_run(tmp_path / f"{seed}.jsonl", shift=seed / 10) for seed in range(3)]
    output = plot_runs({"AdamP": one, "AdamW": seeds}, tmp_path / "new" / "runs.png", title="both")
    assert output == tmp_path / "new" / "runs.png"
    assert output.read_bytes().startswith(PNG)


def test_plot_opens_no_window_system(tmp_path):
    plot_runs({"AdamP": write_run(tmp_path / "run.jsonl")}, tmp_path / "runs.png")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_plot_of_no_run_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"runs=\{\} holds no run"):
        plot_runs({}, tmp_path / "runs.png")


def test_file_without_the_whole_model_is_rejected(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text("")
    with pytest.raises(ValueError, match=r"run\.jsonl holds no line for the whole model"):
        plot_runs({"AdamP": path}, tmp_path / "runs.png")


def test_plot_without_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install hf-adamp\[plots\]"):
        plot_runs({"AdamP": write_run(tmp_path / "run.jsonl")}, tmp_path / "runs.png")
