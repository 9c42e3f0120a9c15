"""python -m hf_adamp, alone and under torchrun and accelerate launch."""

import json
from pathlib import Path

import pytest

from hf_adamp import __version__
from hf_adamp.__main__ import main

SCRIPT = Path(__file__).with_name("train_script.py")

TRAIN = [
    "--output_dir",
    "out",
    "--use_cpu",
    "--max_steps=1",
    "--per_device_train_batch_size=2",
    "--report_to=none",
    "--save_strategy=no",
    "--optim=adamp",
    "--optim_args=delta=0.05",
]
ACCELERATE = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes=1"]


def report_of(outcome):
    (line,) = [line for line in outcome.stdout.splitlines() if line.startswith("REPORT ")]
    return json.loads(line.removeprefix("REPORT "))


def test_script_alone_does_not_know_the_name(run_python):
    assert "invalid choice: 'adamp'" in run_python(SCRIPT, *TRAIN, status=2).stderr


def test_script_alone_knows_the_name_where_the_package_is_installed(run_python):
    assert report_of(run_python(SCRIPT, *TRAIN, automatic=True))["optimizer"] == "AdamP"


def test_script_runs_as_python_would_run_it(run_python):
    report = report_of(run_python("-m", "hf_adamp", SCRIPT, *TRAIN))
    assert report == {
        "argv": [str(SCRIPT), *TRAIN],
        "path": str(SCRIPT.parent),
        "main": "__main__",
        "file": str(SCRIPT),
        "world_size": 1,
        "optimizer": "AdamP",
        "delta": 0.05,
        "steps": 1,
    }


@pytest.mark.parametrize("launch", [["-m", "hf_adamp"], [*ACCELERATE, "-m", "hf_adamp"]])
def test_log_is_written_for_a_script_that_does_not_know_it(run_python, tmp_path, launch):
    command = [*launch, "--log", "new/log.jsonl", SCRIPT, *TRAIN, "--logging_steps=1"]
    outcome = run_python(*command)
    assert report_of(outcome)["argv"] == [str(SCRIPT), *TRAIN, "--logging_steps=1"]
    lines = [json.loads(line) for line in (tmp_path / "new/log.jsonl").read_text().splitlines()]
    assert (lines[0]["step"], lines[0]["weight"]) == (1, None)
    assert lines[0].keys() >= {"loss", "effective_step", "projected_channel"}
    assert "resnet.embedder.embedder.convolution.weight" in [line["weight"] for line in lines]
    assert outcome.stderr.count("has no effect") == 0


def test_log_may_go_to_reporters_alone(run_python, tmp_path):
    outcome = run_python("-m", "hf_adamp", "--log", "reports", SCRIPT, *TRAIN, "--logging_steps=1")
    assert "'effective_step'" in outcome.stdout
    assert list(tmp_path.glob("**/*.jsonl")) == []


def test_log_without_a_trainer_is_told(run_python, tmp_path):
    script = tmp_path / "loop.py"
    script.write_text("print('trained')")
    outcome = run_python("-m", "hf_adamp", "--log", "log.jsonl", script)
    assert "--log log.jsonl has no effect" in outcome.stderr
    assert "StepLog" in outcome.stderr


def test_module_runs_as_python_would_run_it(run_python):
    command = ["-m", "hf_adamp", "-m", SCRIPT.stem, *TRAIN]
    report = report_of(run_python(*command, path=[SCRIPT.parent]))
    assert report["argv"] == [str(SCRIPT), *TRAIN]
    assert report["main"] == "__main__"
    assert report["optimizer"] == "AdamP"


def test_torchrun_trains_on_two_processes(run_python):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    report = report_of(run_python(*torchrun, "-m", "hf_adamp", SCRIPT, *TRAIN))
    assert (report["world_size"], report["optimizer"], report["steps"]) == (2, "AdamP", 1)


def test_accelerate_launch_trains(run_python):
    report = report_of(run_python(*ACCELERATE, "-m", "hf_adamp", SCRIPT, *TRAIN))
    assert report["optimizer"] == "AdamP"


def test_script_sees_its_own_options_and_exit_status(run_python, tmp_path):
    script = tmp_path / "exits.py"
    script.write_text("import sys; print(sys.argv[1:], 'torch' in sys.modules); sys.exit(7)")
    outcome = run_python("-m", "hf_adamp", script, "--version", "-m", "--", "x", status=7)
    assert outcome.stdout.strip() == "['--version', '-m', '--', 'x'] False"


REFUSALS = [
    ([], "nothing to run; give a SCRIPT, or -m MODULE."),
    (["-m"], "nothing to run; give a SCRIPT, or -m MODULE."),
    (["--log", "run", "train.py"], "run must end in .jsonl, or be reports"),
    (["missing.py", "--x"], "cannot find the script missing.py"),
    (["--optim", "adamp"], "unrecognized arguments: --optim"),
    (
        ["-m", "accelerate.commands.launch", "train.py"],
        "accelerate launch [OPTIONS] -m hf_adamp SCRIPT [ARGS].",
    ),
    (["-m", "torch.distributed.run", "train.py"], "torchrun [OPTIONS] -m hf_adamp SCRIPT [ARGS]."),
    (["/usr/bin/torchrun", "train.py"], "torchrun [OPTIONS] -m hf_adamp SCRIPT [ARGS]."),
    (["deepspeed", "train.py"], "deepspeed --module [OPTIONS] hf_adamp SCRIPT [ARGS]."),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSALS)
def test_what_cannot_be_run_is_refused(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("option", "shown"), [("--version", __version__), ("--help", "SCRIPT")])
def test_launcher_describes_itself(option, shown, capsys):
    with pytest.raises(SystemExit) as stop:
        main([option])
    assert stop.value.code == 0
    assert shown in capsys.readouterr().out
