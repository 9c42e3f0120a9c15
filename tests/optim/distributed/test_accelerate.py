"""The configurations of recipes/accelerate_configs, launched on a CPU, all train alike.

Each starts Python anew on every process.

70 s of processor time on the machine they were written on.
"""

from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from tests.optim.distributed.reports import CONFIGS, report_of_run
from tests.tolerances import assert_close
from tests.versions import needs_fsdp2_on_a_cpu

HERE = Path(__file__).parent
_SMALL = ("--num_processes", "2", "--mixed_precision", "no")
# What is changed for this machine: fewer processes, no GPU; and what each must come to.
LAUNCHES = {
    "single_cpu": ((), {"processes": 1, "type": "NO", "placements": ""}),
    "multi_cpu": ((), {"processes": 2, "type": "MULTI_CPU", "placements": ""}),
    "ddp_multi_gpu": (_SMALL, {"processes": 2, "type": "MULTI_CPU", "placements": ""}),
    "fsdp2": (_SMALL, {"processes": 2, "type": "FSDP", "placements": "(Shard(dim=0),)"}),
    "hsdp_multi_node": (
        (
            *("--num_processes", "4", "--mixed_precision", "no"),
            *("--num_machines", "1", "--machine_rank", "0", "--main_process_port", "0"),
            *("--parallelism_config_dp_shard_size", "2"),
        ),
        {"processes": 4, "type": "FSDP", "placements": "(Replicate(), Shard(dim=0))"},
    ),
}


@pytest.fixture(scope="module")
def report_of(tmp_path_factory):
    @cache
    def report(config):
        arguments, _ = LAUNCHES[config]
        launch = ("accelerate.commands.launch", "--config_file", CONFIGS / f"{config}.yaml")
        folder = tmp_path_factory.mktemp(config)
        return report_of_run(*launch, *arguments, HERE / "accelerated.py", folder)

    return report


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(name, marks=needs_fsdp2_on_a_cpu if wanted["type"] == "FSDP" else ())
        for name, (_, wanted) in LAUNCHES.items()
    ],
)
def test_config_trains_as_one_process_and_resumes(report_of, config):
    report, expected = report_of(config), report_of("single_cpu")
    assert report.items() >= LAUNCHES[config][1].items()
    assert report["resumed"]
    for actual, wanted in zip(report["weights"], expected["weights"], strict=True):
        # They travelled in float64, but were float32.
        actual, wanted = torch.tensor(actual), torch.tensor(wanted)
        assert_close(actual, wanted, what=config)


def test_every_config_is_launched_and_says_how():
    files = {path.stem: path.read_text(encoding="utf-8") for path in CONFIGS.glob("*.yaml")}
    # Those of DeepSpeed are launched where it is installed, in tests/optim/zero.
    others = {name for name in files if name.startswith("deepspeed_")}
    assert files.keys() - others == LAUNCHES.keys()
    for name, text in files.items():
        assert f"accelerate launch --config_file {name}.yaml" in text


def test_hsdp_config_adds_up():
    config = yaml.safe_load((CONFIGS / "hsdp_multi_node.yaml").read_text(encoding="utf-8"))
    mesh = config["parallelism_config"]
    replicas = mesh["parallelism_config_dp_replicate_size"]
    assert replicas == config["num_machines"]
    assert replicas * mesh["parallelism_config_dp_shard_size"] == config["num_processes"]


@needs_fsdp2_on_a_cpu
def test_trainer_resumes_its_own_fsdp2_checkpoint(tmp_path):
    launch = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    report = report_of_run(*launch, HERE / "sharded_trainer.py", tmp_path)
    assert report == {
        "optimizer": "AdamP",
        "placements": "(Shard(dim=0),)",
        "steps": 4,
        "steps of a weight": 4.0,
        "identical": True,
    }
