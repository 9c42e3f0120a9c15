"""Biased-MNIST and 9-class ImageNet: what is trained on, what is held out, how it is scored."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from transformers import PreTrainedModel, ResNetConfig, ResNetForImageClassification

from .colours import UNBIASED, assign_colours, paint
from .configuration_rebias import BagNetConfig, StackedConvConfig
from .modeling_rebias import BagNetForImageClassification, StackedConvForImageClassification
from .sources import (
    CLASSES,
    MNIST_SOURCES,
    Photos,
    load_imagenet9,
    load_imagenet_a,
    load_mnist,
    read_clusters,
)

__all__ = ["TASKS", "DataArguments", "ModelArguments", "Task", "accuracy", "cluster_accuracy"]

FEWEST_IN_A_CELL = 10  # images of a class and a texture, as published
COLOUR_SEED = {"train": 20060, "validation": 20061, "test": 20062}  # of the data, not of a run


@dataclass
class DataArguments:
    """The images, and how biased they are."""

    task: str = field(default="biased_mnist", metadata={"help": "biased_mnist or imagenet9."})
    source: str = field(
        default="hub", metadata={"help": f"Of biased_mnist: {', '.join(MNIST_SOURCES)}."}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "The folder; for --source hub an id, or a copy of it."}
    )
    imagenet_a: str | None = field(default=None, metadata={"help": "The folder of ImageNet-A."})
    clusters: str | None = field(
        default=None, metadata={"help": "9class_imagenet_val.csv, for the unbiased accuracy."}
    )
    rho: float = field(default=0.999, metadata={"help": "Share with the colour of the class."})
    pooling: int = field(default=1, metadata={"help": "Digits are shrunk by it; 2 is 14 x 14."})
    image_size: int = field(default=224, metadata={"help": "Of photos."})
    sizes: bool = field(default=True, metadata={"help": "Whether published counts must be met."})


@dataclass
class ModelArguments:
    """The sizes of both networks; kernels and strides are Biased-MNIST's only."""

    f_kernel: int = field(default=7, metadata={"help": "Side of f's kernels."})
    g_kernel: int = field(default=1, metadata={"help": "Side of g's: 1 sees colours only."})
    channels: list[int] | None = field(
        default=None, metadata={"help": "Width of each layer or stage; None is the published one."}
    )
    strides: list[int] | None = field(
        default=None, metadata={"help": "Of each convolution on digits; None is 1, as published."}
    )


@dataclass(frozen=True)
class Task:
    """A data set with its networks.

    Attributes:
        train: pairs of pixels and class.
        held_out: likewise, by the name of the set.
        score: from the name of a held-out set, predicted and true classes to measures.
        build: makes f and g with random weights.
    """

    train: Dataset
    held_out: Mapping[str, Dataset]
    score: Callable[[str, Tensor, Tensor], dict[str, float]]
    build: Callable[[], tuple[PreTrainedModel, PreTrainedModel]]


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Return the share of classes that are right."""
    return (predicted == labels).double().mean().item()


def cluster_accuracy(predicted: Tensor, labels: Tensor, clusters: np.ndarray) -> float:
    """Return the mean accuracy over classes and textures, rare ones counting like frequent ones.

    Cells of a class and a cluster with fewer than ten images do not count; the mean is taken over
    each clustering's cells, then over the clusterings.

    Args:
        predicted: class numbers, (images,).
        labels: likewise.
        clusters: the cluster of each image in several clusterings, (images, clusterings).

    Raises:
        ValueError: a clustering has no cell of ten images.

    Source: Bahng et al., ICML 2020, section 4.3.
    """
    right = (predicted == labels).double().numpy()
    means = []
    for clustering in clusters.T:
        cells = labels.numpy() * (int(clustering.max()) + 1) + clustering
        counts = np.bincount(cells)
        counted = counts >= FEWEST_IN_A_CELL
        if not counted.any():
            raise ValueError(
                f"no class has {FEWEST_IN_A_CELL} images of one texture among {len(cells)}; the "
                "unbiased accuracy needs the whole validation set."
            )
        means.append((np.bincount(cells, weights=right)[counted] / counts[counted]).mean())
    return float(np.mean(means))


def biased_mnist(data: DataArguments, models: ModelArguments) -> Task:
    """Digits on coloured grounds: training with ρ, held-out sets with ρ = 1 and without bias."""
    digits = load_mnist(data.source, data.data_dir, sizes=data.sizes)

    def coloured(split: str, rho: float) -> TensorDataset:
        images, labels = digits[split]
        colours = assign_colours(labels, rho, COLOUR_SEED[split])
        return TensorDataset(paint(images, colours, data.pooling), torch.from_numpy(labels))

    def build() -> tuple[PreTrainedModel, PreTrainedModel]:
        sizes = {"channels": models.channels} if models.channels else {}
        f, g = (
            StackedConvForImageClassification(
                StackedConvConfig(
                    kernel_size=kernel, strides=models.strides, num_labels=10, **sizes
                )
            )
            for kernel in (models.f_kernel, models.g_kernel)
        )
        return f, g

    held_out = {
        "validation_unbiased": coloured("validation", UNBIASED),
        "test_biased": coloured("test", 1.0),
        "test_unbiased": coloured("test", UNBIASED),
    }
    return Task(
        coloured("train", data.rho),
        held_out,
        lambda name, predicted, labels: {name: accuracy(predicted, labels)},
        build,
    )


def imagenet9(data: DataArguments, models: ModelArguments) -> Task:
    """Nine kinds of animals, biased by texture; ImageNet's validation set and ImageNet-A test."""
    if data.data_dir is None:
        raise ValueError("data_dir=None must be the folder with ImageNet's train and val.")
    photos = load_imagenet9(data.data_dir, sizes=data.sizes)
    held_out = {"test": photos["val"]}
    if data.imagenet_a is not None:
        held_out["test_imagenet_a"] = load_imagenet_a(data.imagenet_a, sizes=data.sizes)
    clusters = None if data.clusters is None else read_clusters(data.clusters, photos["val"])

    def score(name: str, predicted: Tensor, labels: Tensor) -> dict[str, float]:
        if name != "test":
            return {name: accuracy(predicted, labels)}
        measures = {"test_biased": accuracy(predicted, labels)}
        if clusters is not None:
            measures["test_unbiased"] = cluster_accuracy(predicted, labels, clusters)
        return measures

    def build() -> tuple[PreTrainedModel, PreTrainedModel]:
        sizes = list(models.channels or (64, 128, 256, 512))
        names = {
            "id2label": dict(enumerate(CLASSES)),
            "label2id": {name: number for number, name in enumerate(CLASSES)},
        }
        shape = {"embedding_size": sizes[0], "hidden_sizes": sizes, "depths": [2, 2, 2, 2]}
        f = ResNetForImageClassification(ResNetConfig(layer_type="basic", **shape, **names))
        return f, BagNetForImageClassification(BagNetConfig(**shape, **names))

    return Task(
        Photos(photos["train"], augment=True, size=data.image_size),
        {
            name: Photos(found, augment=False, size=data.image_size)
            for name, found in held_out.items()
        },
        score,
        build,
    )


TASKS: Mapping[str, Callable[[DataArguments, ModelArguments], Task]] = {
    "biased_mnist": biased_mnist,
    "imagenet9": imagenet9,
}
