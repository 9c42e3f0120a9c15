"""The model that the integration tests train."""

from transformers import ResNetConfig, ResNetForImageClassification


def tiny_resnet():
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
        )
    )
