"""ReBias's training: scores against counting by hand, a run end to end, and resuming one."""

import json

import numpy as np
import pytest
import torch

from recipes.rebias.sources import PACKAGE_SPLITS, Digits
from recipes.rebias.tasks import accuracy, cluster_accuracy
from recipes.rebias.train import main

SMALL = [
    *("--task", "biased_mnist", "--source", "package", "--rho", "0.9", "--pooling", "2"),
    *("--f_kernel", "3", "--channels", "2", "4", "--batch_size", "16", "--log_every", "1"),
    *("--use_cpu", "true", "--disable_tqdm", "true"),
]


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch):
    """Digits made up, so that a run takes a second."""

    def made_up(source, location, *, sizes):
        draw = np.random.default_rng(0)
        return {
            name: Digits(
                (draw.random((40, 28, 28)) < 0.2).astype(np.uint8), np.repeat(np.arange(10), 4)
            )
            for name in PACKAGE_SPLITS
        }

    monkeypatch.setattr("recipes.rebias.tasks.load_mnist", made_up)


def results(folder):
    return json.loads((folder / "results.json").read_text())["measures"]


def test_cluster_accuracy_is_the_mean_over_cells_of_ten():
    draw = np.random.default_rng(1)
    labels, predicted = draw.integers(9, size=(2, 2000))
    clusters = draw.integers(9, size=(2000, 3))
    clusters[:, 2] = np.minimum(np.arange(2000) % 250, 8)  # 1 image in 250 is of a rare texture
    means = []
    for column in range(3):
        cells = {}
        for label, guess, cluster in zip(labels, predicted, clusters[:, column], strict=True):
            cells.setdefault((label, cluster), []).append(guess == label)
        means.append(np.mean([np.mean(cell) for cell in cells.values() if len(cell) >= 10]))
    found = cluster_accuracy(torch.from_numpy(predicted), torch.from_numpy(labels), clusters)
    assert found == pytest.approx(np.mean(means), rel=1e-12)


def test_cluster_accuracy_refuses_too_few_images():
    few = torch.arange(9)
    with pytest.raises(ValueError, match="no class has 10 images of one texture among 9"):
        cluster_accuracy(few, few, np.zeros((9, 3), int))


def test_accuracy_is_the_share_of_equal_classes():
    assert accuracy(torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 0, 4])) == 0.75


@pytest.mark.parametrize("optim", ["adamp", "adam_l2", "adamw_torch"])
def test_train_keeps_networks_measures_and_logs(tmp_path, optim):
    main([*SMALL, "--epochs", "2", "--optim", optim, "--output_dir", str(tmp_path)])
    found = results(tmp_path)
    assert 0 <= found["test_unbiased"] <= found["best_epoch_test_unbiased"] <= 1
    assert found["best_epoch"] in (1, 2)
    assert {"test_biased", "validation_unbiased", "f_loss", "g_loss", "hsic"} <= found.keys()
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").open()]
    assert [line["epoch"] for line in history] == [1, 2]
    assert history[-1]["test_unbiased"] == found["test_unbiased"]
    for name in ("f", "g"):
        lines = [json.loads(line) for line in (tmp_path / f"projection_{name}.jsonl").open()]
        whole = [line for line in lines if line["weight"] is None]
        assert [line["step"] for line in whole] == list(range(1, 7))
        assert (tmp_path / name / "model.safetensors").is_file()


@pytest.mark.parametrize("sigma", ["1.0", "median"])
def test_train_resumed_after_an_epoch_equals_an_uninterrupted_one(tmp_path, sigma, monkeypatch):
    command = [*SMALL, "--sigma", sigma, "--schedule", "cosine", "--epochs", "3"]
    main([*command, "--output_dir", str(tmp_path / "whole")])

    class StoppedError(Exception):
        pass

    from recipes.rebias.train import Run

    evaluate, count = Run.evaluate, iter(range(9))

    def until_the_second(self):
        if next(count) == 1:
            raise StoppedError
        return evaluate(self)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "evaluate", until_the_second)
        with pytest.raises(StoppedError):
            main([*command, "--output_dir", str(tmp_path / "parts")])
    main([*command, "--output_dir", str(tmp_path / "parts"), "--resume", "true"])
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
    for name in ("f", "g"):
        bits = [
            (tmp_path / part / name / "model.safetensors").read_bytes()
            for part in ("whole", "parts")
        ]
        assert bits[0] == bits[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch_size", "3"], "batch_size=3 must be at least 4"),
        (["--schedule", "linear"], "schedule='linear' is unknown"),
        (["--sigma", "-1"], "sigma=-1 must be above 0, or median"),
        (["--task", "kinetics"], "task='kinetics' is unknown; known: biased_mnist, imagenet9"),
        (["--optim", "lion"], "arm='lion' is unknown"),
    ],
)
def test_train_refuses_bad_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        main([*SMALL, "--output_dir", str(tmp_path), *options])
