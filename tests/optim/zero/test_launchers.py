"""The Trainer, and Accelerate's launcher with our configurations, under the real DeepSpeed.

70 s of processor time on the machine they were written on.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.tolerances import assert_close

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]
CONFIGS = REPOSITORY / "recipes" / "accelerate_configs"


def _report(*arguments):
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_TORCH_DEVICE": "cpu",
        "HF_HUB_OFFLINE": "1",
    }
    outcome = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
    )
    lines = [line for line in outcome.stdout.splitlines() if line.startswith("REPORT ")]
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert len(lines) == 1, outcome.stdout + outcome.stderr
    return json.loads(lines[0].removeprefix("REPORT "))


def _assert_weights_close(actual, expected):
    for own, wanted in zip(actual["weights"], expected["weights"], strict=True):
        # They travelled in float64, but were float32.
        assert_close(torch.tensor(own), torch.tensor(wanted))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    launch = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")

    @cache
    def report(stage):
        return _report(*launch, HERE / "trainer.py", tmp_path_factory.mktemp("run"), stage)

    return report


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_trainer_with_the_flag_matches_stage_0_and_resumes(trained, stage):
    report = trained(stage)
    assert report["is ours"]
    assert report["identical"]
    _assert_weights_close(report, trained(0))


@pytest.mark.parametrize("stage", [2, 3])
def test_config_is_launched(stage):
    config = CONFIGS / f"deepspeed_zero{stage}.yaml"
    arguments = ("--num_processes", "2", "--mixed_precision", "no")
    launch = ("accelerate.commands.launch", "--config_file", config, *arguments)
    report = _report(*launch, HERE / "accelerated.py")
    assert (report["processes"], report["stage"]) == (2, stage)
    alone = _report("tests.optim.zero.alone")
    _assert_weights_close(report, alone)
