"""Pictures of ProjectionLog's files."""

import json
import math
import sys

import pytest

from hf_adamp.diagnostics import plot_runs, plots

PNG = b"\x89PNG\r\n\x1a\n"


def write_run(path, *, shift=0.0, steps=5, projected=False):
    shares = {"projected_channel": 0.5, "projected_layer": 0.25} if projected else {}
    with path.open("w") as file:
        for step in range(1, steps + 1):
            row = {"step": step, "loss": math.exp(-step) + shift, "weight_norm": 40 + step}
            row |= {"effective_step": None if step == 2 else 0.01 / step, "update_norm": 0.1}
            file.write(json.dumps({**row, **shares, "weight": None}) + "\n")
            file.write(json.dumps({**row, **shares, "weight": "conv.weight"}) + "\n")
    return path


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


def labels_of(monkeypatch, *arguments, **options):
    """The y labels and scales of the panels of a plot, by their titles."""
    panels = {}
    original = plots._draw_panel

    def draw_panel(axis, panel, series, unit):
        original(axis, panel, series, unit)
        panels[panel.title] = (axis.get_ylabel(), axis.get_yscale())

    monkeypatch.setattr(plots, "_draw_panel", draw_panel)
    plot_runs(*arguments, **options)
    return panels


def test_labels_say_which_weights_are_drawn(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run.jsonl")
    panels = labels_of(monkeypatch, {"a": run}, tmp_path / "runs.png")
    assert panels["Weight norm"][0] == "‖w‖ of all weights, 2-D and up"
    panels = labels_of(monkeypatch, {"a": run}, tmp_path / "runs.png", weights="conv")
    assert panels["Weight norm"][0] == "‖w‖ of weights with “conv”"
    options = {"weights": r"^(conv|fc)\d*\."}
    panels = labels_of(monkeypatch, {"a": run}, tmp_path / "runs.png", **options)
    assert panels["Weight norm"][0] == "‖w‖ of the chosen weights"


def test_negative_losses_get_a_linear_axis(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run.jsonl", shift=-1.0)
    panels = labels_of(monkeypatch, {"a": run}, tmp_path / "runs.png")
    assert panels["Training loss"][1] == "linear"
    assert panels["Effective step"][1] == "log"


def test_projected_share_is_drawn_where_a_run_knows_it(tmp_path, monkeypatch):
    plain, projected = (write_run(tmp_path / f"{n}.jsonl", projected=n == "p") for n in "wp")
    assert "Projected" not in labels_of(monkeypatch, {"w": plain}, tmp_path / "runs.png")
    both = labels_of(monkeypatch, {"w": plain, "p": projected}, tmp_path / "runs.png")
    assert "Projected" in both


def test_plot_without_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install hf-adamp\[plots\]"):
        plot_runs({"AdamP": write_run(tmp_path / "run.jsonl")}, tmp_path / "runs.png")
