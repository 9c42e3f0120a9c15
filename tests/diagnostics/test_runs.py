"""What a run left behind, read back from each of its forms; and the plot command."""

import json
import math

import pytest

from hf_adamp import ProjectionLog
from hf_adamp.__main__ import main
from hf_adamp.diagnostics.runs import read_run
from tests.diagnostics.tiny_training import make_trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run: log, checkpoints with their state."""
    folder = tmp_path_factory.mktemp("run")
    trainer = make_trainer(
        folder,
        [ProjectionLog(jsonl=folder / "projection.jsonl", weights="head")],
        save_strategy="steps",
        save_steps=2,
    )
    trainer.train()
    trainer.save_state()
    return folder


def write_lines(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def assert_alike(rows, others):
    assert len(rows) == len(others) == 3
    for row, other in zip(rows, others, strict=True):
        shared = row.keys() & other.keys() - {"epoch", "weight"}
        assert {"step", "loss", "weight_norm", "effective_step", "projected_channel"} <= shared
        for key in shared:
            assert row[key] == pytest.approx(other[key], rel=1e-6), key


def test_file_state_and_folder_tell_the_same(run):
    from_file = read_run(run / "projection.jsonl")
    assert [row["step"] for row in from_file] == [2, 4, 6]
    assert all(row["weight"] is None for row in from_file)
    assert_alike(read_run(run / "trainer_state.json"), from_file)
    assert read_run(run) == from_file


def test_state_of_the_last_checkpoint_is_found(run, tmp_path):
    for step in (2, 4, 6):
        state = (run / f"checkpoint-{step}" / "trainer_state.json").read_text()
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert [row["step"] for row in read_run(tmp_path)] == [2, 4, 6]


@pytest.mark.parametrize("keys", ["train/{}", "{}"], ids=["Trainer's", "Accelerate's"])
def test_event_files_tell_the_same(run, tmp_path, keys):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path / "runs" / "today") as writer:
        for entry in json.loads((run / "trainer_state.json").read_text())["log_history"]:
            for key, value in entry.items():
                writer.add_scalar(keys.format(key), value, entry["step"])
    assert_alike(read_run(tmp_path), read_run(run))
    assert_alike(read_run(tmp_path, "head"), read_run(run, "head"))


def test_weights_are_chosen_by_name_and_summed_up(run):
    whole, conv, head = (read_run(run, weights) for weights in (None, "^conv", "head"))
    for all_, one, other in zip(whole, conv, head, strict=True):
        assert math.hypot(one["weight_norm"], other["weight_norm"]) == pytest.approx(
            all_["weight_norm"]
        )
        assert (one["projected_channel"], other["projected_channel"]) == (1.0, 0.0)
        assert one["loss"] == all_["loss"]
    assert read_run(run, "conv|head")[0]["weight_norm"] == pytest.approx(whole[0]["weight_norm"])


def test_kinds_are_chosen_where_no_weight_is_meant(run):
    state = run / "trainer_state.json"
    assert read_run(state, "Conv2d")[0]["projected_channel"] == 1.0
    # A weight's name and a kind's must not be counted twice.
    head = read_run(state, "head|Linear")[0]["weight_norm"]
    assert head == pytest.approx(read_run(run, "head")[0]["weight_norm"])


def test_weights_that_no_run_has_are_rejected(run):
    with pytest.raises(
        ValueError, match=r"weights='q_proj' matches no weight or kind.*conv\.weight"
    ):
        read_run(run, "q_proj")


def test_numbers_that_were_not_finite_are_nan(tmp_path):
    file = write_lines(
        tmp_path / "log.jsonl",
        {"step": 1, "weight": None, "effective_step": None, "weight_norm": 0.0},
    )
    assert math.isnan(read_run(file)[0]["effective_step"])


def test_other_files_of_json_lines_are_passed_over(run, tmp_path):
    write_lines(tmp_path / "a.jsonl", {"text": "a sample of data"})
    (tmp_path / "trainer_state.json").write_text((run / "trainer_state.json").read_text())
    assert len(read_run(tmp_path)) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.jsonl", "", r"log\.jsonl has no line for the whole model"),
        (
            "trainer_state.json",
            '{"log_history": [{"step": 1, "loss": 1}]}',
            "no line for the whole",
        ),
    ],
)
def test_file_without_our_numbers_is_rejected(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_run(tmp_path / name)


def test_folder_without_a_log_is_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"has no log: .*train with callbacks="):
        read_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_run(tmp_path / "missing")


def test_plot_command_draws_runs_by_label(run, tmp_path, capsys):
    output = tmp_path / "both.png"
    main(["plot", f"AdamP={run}", str(run), "--weights", "conv", "--output", str(output)])
    assert capsys.readouterr().out.strip() == str(output)
    assert output.read_bytes().startswith(b"\x89PNG")


def test_plot_command_names_runs_after_their_folders(run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "hf_adamp.diagnostics.plot_command.plot_runs", lambda runs, *a, **k: drawn.append(runs)
    )
    main(["plot", str(run / "projection.jsonl"), "AdamW=a=b", "AdamW=c"])
    main(["plot", "x/run", "y/run", "z/other/trainer_state.json"])
    assert drawn == [
        {run.name: [str(run / "projection.jsonl")], "AdamW": ["a=b", "c"]},
        {"x/run": ["x/run"], "y/run": ["y/run"], "other": ["z/other/trainer_state.json"]},
    ]


def test_plot_command_says_what_is_wrong(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plot", str(tmp_path / "missing")])
    assert stop.value.code == 2
    assert "does not exist" in capsys.readouterr().err
