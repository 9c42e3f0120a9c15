"""ProjectionLog inside a real Trainer: what arrives where, and what it leaves behind."""

import subprocess
import sys

import pytest
import torch
from transformers import TrainerCallback

from hf_adamp import AdamP, ProjectionLog
from hf_adamp.diagnostics.steps import SnapshotSteps
from tests.diagnostics.tiny_training import (
    COMMON,
    PROJECTION,
    losses_of,
    make_trainer,
    read_lines,
)


class Reporter(TrainerCallback):
    """Stands where TensorBoard, wandb and trackio do: among the callbacks before a user's."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen.append(dict(logs))


def test_numbers_reach_the_reporters_and_the_history_together(tmp_path):
    reporter = Reporter()
    trainer = make_trainer(tmp_path, [reporter, ProjectionLog()], eval_strategy="steps")
    trainer.train()
    reported, filed = losses_of(reporter.seen), losses_of(trainer.state.log_history)
    assert len(reported) == len(filed) == 3
    for seen, entry in zip(reported, filed, strict=True):
        assert seen.keys() >= COMMON | PROJECTION
        assert {key: entry[key] for key in seen} == seen
        assert all(isinstance(value, float) for value in seen.values())


@pytest.mark.parametrize("disable_tqdm", [True, False])
def test_console_line_is_short_and_reporters_get_all(tmp_path, capsys, disable_tqdm):
    before, behind = Reporter(), Reporter()
    trainer = make_trainer(
        tmp_path, [before, ProjectionLog(weights="conv")], disable_tqdm=disable_tqdm
    )
    trainer.add_callback(behind)
    trainer.train()
    line = next(line for line in capsys.readouterr().out.splitlines() if "'loss'" in line)
    shown = {"weight_norm", "effective_step", "projected_channel", "projected_layer"}
    assert {name for name in COMMON | PROJECTION if f"'{name}'" in line} == shown
    assert "/" not in line
    for reporter in (before, behind):
        assert len([name for name in losses_of(reporter.seen)[0] if "/" in name]) > 20
    assert not any("on_log" in vars(c) for c in trainer.callback_handler.callbacks)


def test_numbers_join_no_evaluation_and_no_closing_log(tmp_path):
    reporter = Reporter()
    trainer = make_trainer(tmp_path, [reporter, ProjectionLog()], eval_strategy="steps")
    trainer.train()
    others = [logs for logs in reporter.seen if "loss" not in logs]
    assert len(others) == 4
    assert all(COMMON.isdisjoint(logs) for logs in others)


def test_callback_added_to_a_finished_trainer_reports_too(tmp_path):
    reporter = Reporter()
    trainer = make_trainer(tmp_path, [reporter])
    trainer.add_callback(ProjectionLog())
    trainer.train()
    assert losses_of(reporter.seen)[0].keys() >= COMMON


def test_other_optimizers_get_norms_and_no_projection(tmp_path):
    trainer = make_trainer(tmp_path, [ProjectionLog()], optimizer=torch.optim.AdamW)
    trainer.train()
    for entry in losses_of(trainer.state.log_history):
        assert entry.keys() >= COMMON
        assert PROJECTION.isdisjoint(entry)


@pytest.mark.parametrize("optimizer", [AdamP, torch.optim.AdamW])
def test_log_of_the_first_step_tells_the_initial_norm(tmp_path, optimizer):
    trainer = make_trainer(
        tmp_path, [ProjectionLog()], optimizer=optimizer, logging_first_step=True
    )
    weights = [trainer.model.conv.weight, trainer.model.head.weight]
    expected = sum(float(w.detach().square().sum()) for w in weights) ** 0.5
    trainer.train()
    assert trainer.state.log_history[0]["weight_norm"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("optimizer", [AdamP, torch.optim.AdamW])
def test_epoch_logging_has_the_numbers(tmp_path, optimizer):
    trainer = make_trainer(
        tmp_path, [ProjectionLog()], optimizer=optimizer, logging_strategy="epoch"
    )
    trainer.train()
    assert all(entry.keys() >= COMMON for entry in losses_of(trainer.state.log_history))


def test_weights_are_copied_only_for_steps_that_are_logged(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(SnapshotSteps, "before_step", lambda self, *, wanted: asked.append(wanted))
    trainer = make_trainer(
        tmp_path, [ProjectionLog()], optimizer=torch.optim.AdamW, logging_first_step=True
    )
    trainer.train()
    assert asked == [True, True, False, True, False, True]


def test_step_that_the_scaler_skipped_is_not_counted(tmp_path):
    log = ProjectionLog()
    trainer = make_trainer(tmp_path, [log])
    optimizer = trainer.optimizer
    optimizer.step_was_skipped = True
    event = (trainer.args, trainer.state, trainer.control)
    log.on_pre_optimizer_step(*event, optimizer=optimizer)
    log.on_optimizer_step(*event, optimizer=optimizer)
    logs = {"loss": 1.0}
    log.on_log(*event, logs=logs)
    assert logs == {"loss": 1.0}


def test_accumulated_gradients_count_as_one_step(tmp_path):
    trainer = make_trainer(tmp_path, [ProjectionLog()], gradient_accumulation_steps=3, steps=4)
    trainer.train()
    entries = losses_of(trainer.state.log_history)
    assert [entry["step"] for entry in entries] == [2, 4]
    assert all(entry.keys() >= COMMON for entry in entries)


def test_kinds_of_modules_are_told_apart_unless_switched_off(tmp_path):
    for per_kind in (True, False):
        trainer = make_trainer(tmp_path, [ProjectionLog(per_kind=per_kind)])
        trainer.train()
        entry = trainer.state.log_history[0]
        assert ("weight_norm/Conv2d" in entry) is per_kind
        assert ("projected_channel/Linear" in entry) is per_kind


def test_weights_that_are_named_are_logged_one_by_one(tmp_path):
    trainer = make_trainer(tmp_path, [ProjectionLog(weights="^conv", per_kind=False)])
    trainer.train()
    entry = trainer.state.log_history[0]
    assert {key for key in entry if "/" in key} == {
        f"{name}/conv.weight" for name in COMMON | PROJECTION
    }
    assert entry["not_projected/conv.weight"] == 0.0


def test_bad_expression_for_weights_is_rejected():
    with pytest.raises(ValueError, match=r"weights='\(' must be a regular expression"):
        ProjectionLog(weights="(")


def test_log_changes_no_weight(tmp_path):
    trained = []
    for callbacks in ([], [ProjectionLog(jsonl=tmp_path / "log.jsonl")]):
        trainer = make_trainer(tmp_path, callbacks, seed=3)
        trainer.train()
        trained.append(trainer.model.state_dict())
    for name, tensor in trained[0].items():
        assert torch.equal(tensor, trained[1][name]), name


def test_recording_ends_with_the_training(tmp_path):
    trainer = make_trainer(tmp_path, [ProjectionLog()])
    optimizer = trainer.optimizer
    trainer.train()
    assert optimizer.record_steps is False


def test_file_holds_one_line_a_weight_behind_one_for_the_model(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    make_trainer(tmp_path, [ProjectionLog(jsonl=path)]).train()
    lines = read_lines(path)
    assert [line["weight"] for line in lines[:3]] == [None, "conv.weight", "head.weight"]
    assert [line["step"] for line in lines] == [2] * 3 + [4] * 3 + [6] * 3
    model, conv, head = lines[:3]
    assert model.keys() >= COMMON | PROJECTION | {"loss"}
    assert conv.keys() >= COMMON | PROJECTION | {"view", "channel_margin", "layer_margin"}
    assert (conv["kind"], head["kind"]) == ("Conv2d", "Linear")
    assert conv["view"] in {"none", "channel", "layer"}


def test_file_of_an_earlier_run_is_replaced_and_a_resumed_one_continued(tmp_path):
    path = tmp_path / "log.jsonl"
    saving = {"save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, [ProjectionLog(jsonl=path)], steps=4, **saving).train()
    make_trainer(tmp_path, [ProjectionLog(jsonl=path)], steps=4, **saving).train()
    assert len(read_lines(path)) == 6
    make_trainer(tmp_path, [ProjectionLog(jsonl=path)], steps=8, **saving).train(
        resume_from_checkpoint=True
    )
    assert [line["step"] for line in read_lines(path)[::3]] == [2, 4, 6, 8]


def test_file_writes_what_is_no_number_as_null(tmp_path):
    path = tmp_path / "log.jsonl"
    trainer = make_trainer(tmp_path, [ProjectionLog(jsonl=path)], optimizer=torch.optim.AdamW)
    with torch.no_grad():
        trainer.model.head.weight.zero_()
    trainer.args.learning_rate = 0.0
    trainer.optimizer.param_groups[0]["lr"] = 0.0
    trainer.train()
    assert read_lines(path)[2]["effective_step"] is None


def test_diagnostics_import_without_transformers():
    code = (
        "import sys; sys.modules['transformers'] = None; "
        "from hf_adamp.diagnostics import plot_runs; import hf_adamp.diagnostics.steps"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
