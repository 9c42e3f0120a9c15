"""The shapes of the weights that the benchmarks step: real models without their values."""

from collections.abc import Callable

import torch

__all__ = ["SHAPES", "Shapes"]

Shapes = list[tuple[int, ...]]


def _shapes_of(build: Callable[[], torch.nn.Module]) -> Shapes:
    """Build a model on the meta device, where weights have shapes and take no memory."""
    with torch.device("meta"):
        return [tuple(parameter.shape) for parameter in build().parameters()]


def bert_base() -> Shapes:
    """109M elements in 199 weights, the word embeddings a fifth of them."""
    from transformers import AutoModel, BertConfig

    return _shapes_of(lambda: AutoModel.from_config(BertConfig()))


def resnet50() -> Shapes:
    """25.6M elements in 161 weights, most of them convolutions."""
    from transformers import AutoModelForImageClassification, ResNetConfig

    config = ResNetConfig(num_labels=1000)
    return _shapes_of(lambda: AutoModelForImageClassification.from_config(config))


def gpt2_medium() -> Shapes:
    """355M elements in 292 weights."""
    from transformers import AutoModel, GPT2Config

    config = GPT2Config(n_embd=1024, n_layer=24, n_head=16)
    return _shapes_of(lambda: AutoModel.from_config(config))


def tiny_weights() -> Shapes:
    """5,000 weights of few elements each, where a step is all overhead."""
    return [(16, 16), (16,), (8, 4, 3, 3), (8,), (32, 8)] * 1000


SHAPES: dict[str, Callable[[], Shapes]] = {
    "bert-base": bert_base,
    "resnet50": resnet50,
    "gpt2-medium": gpt2_medium,
    "tiny": tiny_weights,
}
