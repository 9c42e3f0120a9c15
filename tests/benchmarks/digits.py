"""A small ResNet and scikit-learn's handwritten digits, for what compares optimizers on them.

The 1,797 images of 8x8 pixels install with scikit-learn. They are split once, stratified by digit:
1,257 for training, 180 for validation, 360 for the test.
"""

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from sklearn.datasets import load_digits
from transformers import ResNetConfig, ResNetForImageClassification

__all__ = ["build_model", "load_splits", "preprocess"]

BRIGHTEST = 16  # scikit-learn's digits hold 0 to 16
SPLIT_SEED = 20060  # of the data only: every run sees the same three sets


def load_splits() -> DatasetDict:
    """Return the digits as train, validation and test sets with columns `image` and `label`."""
    digits = load_digits()
    columns = {"image": digits.images.astype(np.float32).tolist(), "label": digits.target.tolist()}
    names = [str(name) for name in digits.target_names]
    whole = Dataset.from_dict(columns).cast_column("label", ClassLabel(names=names))
    by_label = {"seed": SPLIT_SEED, "stratify_by_column": "label"}
    rest = whole.train_test_split(test_size=360, **by_label)
    train = rest["train"].train_test_split(test_size=180, **by_label)
    return DatasetDict(train=train["train"], validation=train["test"], test=rest["test"])


def preprocess(image: list[list[float]], size: int) -> torch.Tensor:
    """Scale one 8x8 image to [-1, 1] and enlarge it, as (1, size, size)."""
    pixels = torch.tensor(image)[None, None] * (2 / BRIGHTEST) - 1
    return torch.nn.functional.interpolate(pixels, size=(size, size), mode="bilinear")[0]


def build_model(hidden_sizes: list[int], depths: list[int]) -> ResNetForImageClassification:
    """Build the ResNet: each convolution but none of the classifier feeds a BatchNorm."""
    config = ResNetConfig(
        num_channels=1,
        embedding_size=hidden_sizes[0],
        hidden_sizes=hidden_sizes,
        depths=depths,
        layer_type="basic",
        num_labels=10,
    )
    return ResNetForImageClassification(config)
