"""The log's numbers in the trackers' own files; each needs its package."""

import sqlite3

import pytest

from hf_adamp import ProjectionLog
from hf_adamp.diagnostics.runs import read_run
from tests.diagnostics.tiny_training import COMMON, PROJECTION, losses_of, make_trainer

NUMBERS = COMMON | PROJECTION


def run_reporting_to(name, folder):
    trainer = make_trainer(folder, [ProjectionLog(weights="conv")], report_to=[name])
    trainer.train()
    return losses_of(trainer.state.log_history)


def test_numbers_reach_tensorboard(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    history = run_reporting_to("tensorboard", tmp_path)
    for weights, suffix in ((None, ""), ("conv", "/conv.weight"), ("Linear", "/Linear")):
        for row, entry in zip(read_run(tmp_path, weights), history, strict=True):
            expected = {key: entry[key + suffix] for key in NUMBERS}
            assert {key: row[key] for key in NUMBERS} == pytest.approx(expected, rel=1e-6)


def test_numbers_reach_wandb(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for key, value in {"MODE": "offline", "SILENT": "true", "DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"WANDB_{key}", value)
    history = run_reporting_to("wandb", tmp_path)
    summary = dict(wandb.run.summary)
    wandb.finish()
    for suffix in ("", "/Conv2d", "/conv.weight"):
        for key in NUMBERS:
            assert summary[f"train/{key}{suffix}"] == pytest.approx(history[-1][key + suffix])


def test_numbers_reach_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    pytest.importorskip("trackio")
    run_reporting_to("trackio", tmp_path)
    (database,) = tmp_path.glob("*.db")
    with sqlite3.connect(database) as connection:
        stored = "".join(str(row) for row in connection.execute("SELECT * FROM metrics"))
    for key in NUMBERS:
        assert f'"train/{key}/conv.weight"' in stored
