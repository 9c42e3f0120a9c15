"""The Trainer, and Accelerate's launcher with our configurations, under the real DeepSpeed.

70 s of processor time on the machine they were written on.
"""

from functools import cache, partial
from pathlib import Path

import pytest
import torch

from tests.optim.distributed.reports import CONFIGS, report_of_run
from tests.tolerances import assert_close

HERE = Path(__file__).parent


_report = partial(report_of_run, device="ACCELERATE_TORCH_DEVICE=cpu")


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
