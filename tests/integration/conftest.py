"""Fixtures of the integration tests: a fresh interpreter, a tiny network and its data."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

import hf_adamp

REPOSITORY = Path(__file__).parents[2]

hf_adamp.register()


@pytest.fixture(scope="session")
def installed_metadata(tmp_path_factory):
    """A folder that looks to importlib.metadata like the installed package: name, entry points."""
    section = re.search(
        r'^\[project\.entry-points\."(torch\.backends)"\]\n(.+?)\n\n',
        (REPOSITORY / "pyproject.toml").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    folder = tmp_path_factory.mktemp("site")
    info = folder / "hf_adamp-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hf-adamp\nVersion: 0\n")
    entries = section[2].replace('"', "")
    (info / "entry_points.txt").write_text(f"[{section[1]}]\n{entries}\n")
    return folder


@pytest.fixture
def run_python(installed_metadata, tmp_path):
    """Run a fresh interpreter, with the automatic registration only where asked for."""

    def run(*arguments, automatic=False, status=0, path=()):
        folders = [installed_metadata, REPOSITORY, *path]
        outcome = subprocess.run(
            [sys.executable, *map(str, arguments)],
            check=False,
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(
                    [*map(str, folders), os.environ.get("PYTHONPATH", "")]
                ),
                "TORCH_DEVICE_BACKEND_AUTOLOAD": str(int(automatic)),
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
            },
        )
        assert outcome.returncode == status, outcome.stdout + outcome.stderr
        return outcome

    return run


@pytest.fixture
def make_args(tmp_path):
    """Training arguments for a CPU run that reports to nobody."""

    def make(cls=TrainingArguments, **overrides):
        arguments = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "per_device_train_batch_size": 4,
            "max_steps": 2,
            "save_strategy": "no",
            "weight_decay": 0.01,
            **overrides,
        }
        return cls(**arguments)

    return make


@pytest.fixture
def resnet():
    """Two residual blocks: convolutions, BatchNorm and a linear head."""
    torch.manual_seed(0)
    from tests.integration.models import tiny_resnet

    return tiny_resnet()


@pytest.fixture(scope="session")
def images():
    generator = torch.Generator().manual_seed(0)
    return [
        {"pixel_values": torch.randn(3, 16, 16, generator=generator), "labels": i % 3}
        for i in range(24)
    ]
