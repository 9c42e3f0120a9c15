"""What is launched: configurations, scripts, and the table of the runs that came of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recipes.transformer_xl_wikitext103 import compare, train
from recipes.transformer_xl_wikitext103.configuration_transformer_xl import TransformerXLConfig
from recipes.transformer_xl_wikitext103.modeling_transformer_xl import TransformerXLForCausalLM

REPOSITORY = Path(__file__).parents[3]
RECIPE = REPOSITORY / "recipes" / "transformer_xl_wikitext103"
CLASSES = (train.ModelArguments, train.DataArguments, train.TrainingArguments)
SCRIPTS = sorted((RECIPE / "launch").glob("*.sh"))


def read(*names, output):
    files = [str(RECIPE / "configs" / f"{name}.yaml") for name in names]
    return train.parse(CLASSES, [*files, "--output_dir", str(output), "--use_cpu", "true"])


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["base"], 151_107_538),  # the paper's table says 151 million
        (["base", "large"], 285_170_506),  # and 257 million, which this script's sizes do not give
        (["base", "base_512"], 191_950_298),
        (["base", "8gpus", "smoke"], 151_107_538),
        (["base", "weight_norm"], 151_107_538 + 16 * (3 * 410 + 410 + 410 + 2100 + 410)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_configurations_make_the_published_models(names, weights, tmp_path):
    model, _, _ = read(*names, output=tmp_path)
    config = TransformerXLConfig(**vars(model), vocab_size=267_735)
    with torch.device("meta"):
        built = TransformerXLForCausalLM(config)
    assert built.num_parameters() == weights


def test_base_configuration_is_the_published_schedule(tmp_path):
    _, data, args = read("base", output=tmp_path)
    assert (data.columns, data.tgt_len, args.max_steps) == (60, 150, 200_000)
    assert (args.learning_rate, args.max_grad_norm, args.warmup_steps) == (2.5e-4, 0.25, 0)
    assert args.lr_scheduler_type == "cosine"


def test_eight_gpus_can_share_the_columns(tmp_path):
    for names in (["base", "8gpus"], ["base", "8gpus", "base_512"], ["base", "8gpus", "large"]):
        _, data, _ = read(*names, output=tmp_path)
        assert data.columns % 8 == 0, names


def test_there_is_a_script_for_each_kind_of_machine():
    assert {path.stem for path in SCRIPTS} == {"cpu", "gpu", "8gpus", "nodes", "demo"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_launches_with_what_accelerate_knows(script, tmp_path):
    # In place of accelerate's command, one that writes down what it is called with.
    recorder = tmp_path / "accelerate-launch"
    recorder.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@" > "$CALL"\nexit 3\n')
    recorder.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join(
            [str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]]
        ),
        "CALL": str(tmp_path / "call"),
        "RUNS": str(tmp_path / "runs"),
        **{"MACHINES": "2", "MACHINE_RANK": "1", "MAIN_ADDRESS": "10.0.0.1"},
    }
    finished = subprocess.run(
        ["bash", str(script), "--output_dir", "x"], cwd=REPOSITORY, env=environment, check=False
    )
    assert finished.returncode == 3
    call = (tmp_path / "call").read_text().split("\n")[:-1]
    options, script_options = call[: call.index("-m")], call[call.index("-m") :]
    assert script_options[:3] == ["-m", "hf_adamp", "-m"]
    assert script_options[3] == "recipes.transformer_xl_wikitext103.train"
    assert Path(REPOSITORY / script_options[4]).is_file()
    from accelerate.commands.launch import launch_command_parser

    known = launch_command_parser().parse_args([*options, *script_options])
    processes = {"cpu": 1, "gpu": 1, "8gpus": 8, "nodes": 16, "demo": 2}
    assert known.num_processes == processes[script.stem]
    assert known.module
    assert bool(known.multi_gpu) == (known.num_processes > 1)


def test_compare_prints_both_tables_and_draws(text, tmp_path, capsys, monkeypatch):
    from test_transformer_xl_training import options

    for model in ("plain", "weight_norm"):
        for optimizer in ("adamw_torch", "adamp"):
            for seed in (1, 2):
                changes = {"optim": optimizer, "seed": seed, "max_steps": 3}
                changes["weight_norm"] = str(model == "weight_norm")
                output = tmp_path / f"{model}-{optimizer}-{seed}"
                train.main(options(text, tmp_path / "cache", output, **changes))
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path)])
    compare.main()
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("| weight-normalised ")]
    assert len(lines) == 2  # validation and test
    assert all(line.count("±") == 3 for line in lines)
    [row] = [x for x in printed.splitlines() if x.startswith("| AdamP, weight-normalised")]
    assert "100.0%" in row
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_compare_without_a_run_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path)])
    with pytest.raises(SystemExit, match="run `make demo-transformer-xl` first"):
        compare.main()
