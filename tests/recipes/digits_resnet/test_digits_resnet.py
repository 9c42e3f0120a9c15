"""The digits recipe: its data, its metric, and a short run of its scripts."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[3]
RECIPE = REPOSITORY / "recipes" / "digits_resnet"


def load_script(name):
    spec = importlib.util.spec_from_file_location(f"digits_resnet_{name}", RECIPE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def train():
    return load_script("train")


@pytest.fixture(scope="module")
def splits(train):
    return train.load_splits()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Four steps with either optimizer, through the package's launcher."""
    root = tmp_path_factory.mktemp("runs")
    for optimizer in ("adamp", "adamw_torch"):
        command = [sys.executable, "-m", "hf_adamp", str(RECIPE / "train.py")]
        command += ["--optim", optimizer, "--output_dir", str(root / f"{optimizer}-1")]
        command += ["--max_steps", "4", "--logging_steps", "2", "--save_strategy", "no"]
        command += ["--report_to", "none", "--use_cpu", "--hidden_sizes", "8", "--depths", "1"]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        subprocess.run(command, check=True, cwd=REPOSITORY, env=environment, timeout=300)
    return root


def test_splits_have_the_documented_sizes(splits):
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 1257,
        "validation": 180,
        "test": 360,
    }


def test_splits_share_no_image_by_position(train, splits):
    total = sum(len(split) for split in splits.values())
    assert total == 1797
    # 1,797 different images, so a repeated one would have been put into two sets.
    images = {str(row) for split in splits.values() for row in split["image"]}
    assert len(images) == total


def test_splits_are_the_same_in_every_run(train, splits):
    again = train.load_splits()
    assert again["test"]["image"][:5] == splits["test"]["image"][:5]


def test_splits_hold_every_digit_in_proportion(splits):
    for split in splits.values():
        counts = torch.bincount(torch.tensor(split["label"][:]), minlength=10) / len(split)
        assert counts.min() > 0.08
        assert counts.max() < 0.12


def test_preprocess_enlarges_and_scales(train):
    image = [[0.0] * 8] * 4 + [[16.0] * 8] * 4
    pixels = train.preprocess(image, 32)
    assert pixels.shape == (1, 32, 32)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert pixels[0, 0, 0] == -1


def test_metric_counts_what_is_right(train):
    import evaluate

    metric = evaluate.load(str(train.METRIC))
    result = metric.compute(predictions=[0, 1, 2, 3], references=[0, 1, 2, 4])
    assert result == {"accuracy": 0.75}


def test_run_leaves_its_results_and_its_log(runs):
    for optimizer in ("adamp", "adamw_torch"):
        folder = runs / f"{optimizer}-1"
        assert 0 <= json.loads((folder / "test_results.json").read_text())["test_accuracy"] <= 1
        steps = [json.loads(line)["step"] for line in (folder / "projection.jsonl").open()]
        assert set(steps) == {2, 4}


def test_adamp_projects_the_convolutions_of_the_network(runs):
    lines = map(json.loads, (runs / "adamp-1" / "projection.jsonl").open())
    convolutions = [line for line in lines if line.get("kind") == "Conv2d"]
    assert convolutions
    assert sum(line["projected_channel"] for line in convolutions) / len(convolutions) > 0.5


def test_compare_prints_a_line_an_optimizer_and_draws_them(runs):
    command = [sys.executable, "-m", "recipes.digits_resnet.compare", str(runs)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table[2:]] == ["adamp", "adamw_torch"]
    assert (runs / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_compare_without_a_run_says_what_to_do(tmp_path):
    command = [sys.executable, "-m", "recipes.digits_resnet.compare", str(tmp_path)]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    assert finished.returncode == 1
    assert "run recipes/digits_resnet/run.sh first" in finished.stderr
