"""What the tests of adversarial training share: CIFAR-10's layouts in small, and a fast run."""

import json

import numpy as np
import pytest
from PIL import Image

from recipes.adversarial_training.sources import BINARY_FILES, CIFAR10_CLASSES
from recipes.adversarial_training.train import main

TINY = {
    "source": "binary",
    "sizes": "false",
    "depth": 10,
    "widen_factor": 1,
    "validation_images": 10,
    "steps": 2,
    "test_steps": 2,
    "strong_attacks": ("apgd-ce", "square"),
    "strong_steps": 3,
    "strong_queries": 5,
    "strong_images": 8,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 10,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "use_cpu": "true",
    "report_to": "none",
    "disable_tqdm": "true",
    "dataloader_pin_memory": "false",
    "save_strategy": "no",
    "seed": 1,
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """What datasets keeps goes into the session's folder, and nothing comes from another run."""
    monkeypatch.setattr(
        "datasets.config.HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets")
    )


def draw(label, number):
    """An image that its label and number make: (32, 32, 3) uint8."""
    pixels = np.random.default_rng([label, number]).integers(0, 120, (32, 32, 3), dtype=np.uint8)
    pixels[3 * label : 3 * label + 3] += 120
    return pixels


def write_binary(root, *, per_class):
    """Lay CIFAR-10 out as `cifar-10-batches-bin`: five files to train, one to test."""
    root.mkdir(parents=True, exist_ok=True)
    files = [(name, split) for split, names in BINARY_FILES.items() for name in names]
    for index, (name, _) in enumerate(files):
        rows = b""
        for number in range(per_class):
            for label in range(10):
                image = draw(label, 100 * index + number)
                rows += bytes([label]) + image.transpose(2, 0, 1).tobytes()
        (root / name).write_bytes(rows)


def write_folder(root, *, per_class):
    """Lay CIFAR-10 out as SPLIT/CLASS/FILE.png."""
    for split, count in per_class.items():
        for label, name in enumerate(CIFAR10_CLASSES):
            for number in range(count):
                path = root / split / name / f"{number:04}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(draw(label, number)).save(path)


@pytest.fixture(scope="session")
def binary(tmp_path_factory):
    """Five training files of 10 images, and a test file of as many."""
    root = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-bin"
    write_binary(root, per_class=1)
    return root


@pytest.fixture
def train(tmp_path, binary):
    """Run the script with tiny settings, and return what it measured."""

    def run(output=None, **options):
        output = output or tmp_path / "run"
        arguments = []
        for name, value in ({"data_dir": binary, "output_dir": output, **TINY} | options).items():
            values = value if isinstance(value, tuple) else (value,)
            arguments += [f"--{name}", *map(str, values)]
        main(arguments)
        return json.loads((output / "all_results.json").read_text())

    return run
