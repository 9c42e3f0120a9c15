"""The losses against closed forms in float64; the embedder's BatchNorms, sizes and formats."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModel, ResNetConfig

from recipes.image_retrieval.configuration_embedder import ImageEmbedderConfig
from recipes.image_retrieval.modeling_embedder import ImageEmbedder, SemiHardTriplets

TINY = {"widths": (4, 6), "strides": (2, 1), "embedding_size": 5, "num_classes": 7}


def tiny(**settings):
    return ImageEmbedder(ImageEmbedderConfig(**(TINY | settings)))


def proxy_anchor(embeddings, labels, proxies, margin, alpha):
    """Equation 4 of Kim et al., CVPR 2020, proxy by proxy."""
    proxies = proxies / np.linalg.norm(proxies, axis=1, keepdims=True)
    positive, negative, with_positives = 0.0, 0.0, 0
    for number, proxy in enumerate(proxies):
        similar = embeddings @ proxy
        own = similar[labels == number]
        if len(own):
            with_positives += 1
            positive += np.log(1 + np.exp(-alpha * (own - margin)).sum())
        negative += np.log(1 + np.exp(alpha * (similar[labels != number] + margin)).sum())
    return positive / with_positives + negative / len(proxies)


def test_proxy_anchor_equals_its_equation_in_float64():
    model = tiny(margin=0.2, alpha=8.0).double()
    embeddings = functional.normalize(torch.randn(12, 5, dtype=torch.float64), dim=-1)
    labels = torch.randint(5, (12,))
    found = model.objective(embeddings, labels).item()
    proxies = model.objective.proxies.detach().numpy()
    expected = proxy_anchor(embeddings.numpy(), labels.numpy(), proxies, 0.2, 8.0)
    assert found == pytest.approx(expected, rel=1e-12)


def test_triplet_loss_is_the_mean_over_semi_hard_triplets_in_float64():
    embeddings = functional.normalize(torch.randn(14, 3, dtype=torch.float64), dim=-1)
    labels = torch.arange(14) % 4
    distance = np.linalg.norm(embeddings[:, None] - embeddings[None], axis=-1)
    terms = [
        0.3 + distance[a, p] - distance[a, n]
        for a, p, n in itertools.product(range(14), repeat=3)
        if a != p
        and labels[a] == labels[p] != labels[n]
        and distance[a, p] < distance[a, n] <= distance[a, p] + 0.3
    ]
    assert len(terms) > 20
    found = SemiHardTriplets(0.3)(embeddings, labels).item()
    assert found == pytest.approx(np.mean(terms), rel=1e-6)


def test_triplet_loss_of_a_batch_without_triplets_is_zero_with_a_gradient():
    embeddings = torch.eye(3, requires_grad=True)
    loss = SemiHardTriplets(0.1)(embeddings, torch.tensor([0, 1, 2]))
    loss.backward()
    assert loss.item() == 0
    assert embeddings.grad.abs().sum() == 0


def test_embeddings_are_unit_vectors_of_average_plus_maximum():
    model = tiny().eval()
    pixels = torch.randn(3, 1, 8, 8)
    features = model.backbone(pixels)
    pooled = features.flatten(2).mean(-1) + features.flatten(2).max(-1).values
    expected = functional.normalize(model.embedding(pooled), dim=-1)
    output = model(pixels)
    assert output.loss is None
    assert torch.allclose(output.embeddings, expected, atol=1e-6)
    assert torch.allclose(output.embeddings.norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batch_norms_keep_statistics_gain_and_bias(frozen):
    model = tiny(freeze_batch_norms=frozen).train()
    norm = model.batch_norms()[0]
    before = [tensor.clone() for tensor in norm.state_dict().values()]
    model(torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])).loss.backward()
    same = [torch.equal(a, b) for a, b in zip(before, norm.state_dict().values(), strict=True)]
    # Gain and bias move with a step only; statistics and the count of batches with a batch.
    assert same == [True, True, frozen, frozen, frozen]
    assert (norm.weight.grad is None) == frozen
    assert norm.training != frozen
    assert model.backbone[0].convolution.weight.grad is not None


def test_live_batch_norms_make_filters_scale_invariant_and_frozen_ones_do_not():
    shares = {}
    for frozen in (True, False):
        model = tiny(freeze_batch_norms=frozen)
        # Statistics of a trained network, not 0 and 1.
        for norm in model.batch_norms():
            norm.running_mean.uniform_(-1, 1)
        batch = {"pixel_values": torch.randn(8, 1, 8, 8), "labels": torch.arange(8) % 7}
        model.train()(**batch).loss.backward()
        weights = [block.convolution.weight for block in model.backbone]
        shares[frozen] = max(
            functional.cosine_similarity(w.grad.flatten(1), w.flatten(1)).abs().max().item()
            for w in weights
        )
        proxies = model.objective.proxies
        assert functional.cosine_similarity(proxies.grad, proxies).abs().max() < 1e-4
    assert shares[False] < 1e-3
    assert shares[True] > 0.05


def test_resnet_50_has_the_published_sizes():
    with torch.device("meta"):
        model = ImageEmbedder(ImageEmbedderConfig(backbone_config=ResNetConfig(), num_classes=100))
        output = model(torch.empty(2, 3, 224, 224))
    assert sum(p.numel() for p in model.backbone.parameters()) == 23_508_032
    assert sum(p.numel() for p in model.embedding.parameters()) == 2048 * 512 + 512
    assert model.objective.proxies.shape == (100, 512)
    assert output.embeddings.shape == (2, 512)


@pytest.mark.parametrize("loss", ["proxy_anchor", "triplet"])
def test_embedder_comes_back_from_its_folder(tmp_path, loss):
    model = tiny(loss=loss).eval()
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).eval()
    pixels = torch.randn(2, 1, 8, 8)
    assert torch.equal(model(pixels).embeddings, again(pixels).embeddings)
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, again.state_dict()[name]), name


def test_loss_and_proxies_stay_in_float32_under_autocast():
    model = tiny()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(torch.randn(4, 1, 8, 8), torch.arange(4))
    assert model.objective.proxies.dtype == output.loss.dtype == torch.float32
    assert output.embeddings.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "contrastive"}, "loss='contrastive' is unknown; known losses: proxy_anchor"),
        ({"widths": (4,)}, "must be equally many"),
    ],
)
def test_configuration_refuses_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


def test_embedder_without_classes_has_no_loss():
    model = tiny(num_classes=0)
    assert model(torch.randn(2, 1, 8, 8)).embeddings.shape == (2, 5)
    with pytest.raises(ValueError, match="num_classes=0 leaves no proxy"):
        model(torch.randn(2, 1, 8, 8), torch.tensor([0, 1]))
