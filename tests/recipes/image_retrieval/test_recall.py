"""Recall@K against counting by hand, and against pytorch-metric-learning's own accuracy."""

import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from torch.nn import functional

from recipes.image_retrieval import recall
from recipes.image_retrieval.recall import BOTH, GALLERY, QUERY, recall_at

KS = [1, 2, 4, 8]


def made_up(images, classes):
    embeddings = functional.normalize(torch.randn(images, 6), dim=-1)
    return embeddings, torch.randint(classes, (images,))


def by_hand(k, embeddings, labels, roles):
    """Look at every pair in float64, one query after the other."""
    vectors = embeddings.double().numpy()
    hits = []
    for query in range(len(vectors)):
        if roles[query] == GALLERY:
            continue
        others = [o for o in range(len(vectors)) if o != query and roles[o] != QUERY]
        others.sort(key=lambda other: -float(np.dot(vectors[query], vectors[other])))
        hits.append(any(labels[other] == labels[query] for other in others[:k]))
    return sum(hits) / len(hits)


@pytest.mark.parametrize("protocol", ["leave-one-out", "query and gallery", "all three"])
def test_recall_equals_counting_by_hand(protocol, monkeypatch):
    monkeypatch.setattr(recall, "ROWS", 7)
    embeddings, labels = made_up(60, 12)
    roles = {
        "leave-one-out": torch.full((60,), BOTH),
        "query and gallery": torch.where(torch.arange(60) % 3 == 0, QUERY, GALLERY),
        "all three": torch.arange(60) % 3,
    }[protocol]
    found = recall_at(KS, embeddings, labels, roles)
    assert found == {k: pytest.approx(by_hand(k, embeddings, labels, roles)) for k in KS}
    assert 0 <= found[1] < found[8] < 1


def test_recall_leaves_one_out_without_roles():
    embeddings, labels = made_up(30, 5)
    roles = torch.full((30,), BOTH)
    assert recall_at(KS, embeddings, labels) == recall_at(KS, embeddings, labels, roles)


def test_recall_at_one_equals_the_librarys_precision_at_one():
    embeddings, labels = made_up(80, 9)
    calculator = AccuracyCalculator(
        include=("precision_at_1",), knn_func=CustomKNN(CosineSimilarity()), k=1
    )
    found = calculator.get_accuracy(embeddings, labels)["precision_at_1"]
    assert recall_at([1], embeddings, labels)[1] == pytest.approx(found)


def test_recall_finds_no_image_itself_and_misses_classes_of_one():
    embeddings = functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), dim=-1)
    assert recall_at([1], embeddings, torch.tensor([0, 1, 2])) == {1: 0.0}
    assert recall_at([1], embeddings, torch.tensor([0, 0, 2])) == {1: pytest.approx(2 / 3)}


def test_recall_of_a_run_that_diverged_is_not_a_number():
    embeddings, labels = made_up(10, 2)
    embeddings[3, 0] = torch.nan
    assert all(map(math.isnan, recall_at([1, 2], embeddings, labels).values()))


@pytest.mark.parametrize("ks", [[], [0], [10]])
def test_recall_refuses_numbers_of_neighbours_that_there_are_not(ks):
    embeddings, labels = made_up(10, 2)
    with pytest.raises(ValueError, match="must be from 1 to below the gallery's 10 images"):
        recall_at(ks, embeddings, labels)


def test_recall_refuses_a_gallery_without_a_query():
    embeddings, labels = made_up(10, 2)
    with pytest.raises(ValueError, match="there is no query"):
        recall_at([1], embeddings, labels, torch.full((10,), GALLERY))
