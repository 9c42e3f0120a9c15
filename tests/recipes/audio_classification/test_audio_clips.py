"""Crops, chunks and metrics: what a model is shown, and how its answers are scored."""

import evaluate
import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Sequence, Value
from sklearn.metrics import average_precision_score, f1_score, recall_score, roc_auc_score
from transformers import EvalPrediction

from recipes.audio_classification.clips import (
    Collator,
    EqualChunks,
    RandomCrops,
    average_chunks,
)
from recipes.audio_classification.feature_extraction_harmonic_cnn import HarmonicCnnFeatureExtractor
from recipes.audio_classification.tasks import METRICS, TASKS


def clips(*lengths):
    """Clips whose samples count up from 1, so that a window shows where it was cut."""
    features = Features({"samples": Sequence(Value("int16")), "labels": Value("int64")})
    rows = {"samples": [list(range(1, n + 1)) for n in lengths], "labels": range(len(lengths))}
    return Dataset.from_dict(rows, features=features)


def cut(row):
    return np.rint(row["waveform"] * 32767).astype(int).tolist()


def test_random_crops_come_from_the_whole_clip_and_stay_inside():
    crops = RandomCrops(clips(10), 4)
    found = {tuple(cut(crops[0])) for _ in range(200)}
    assert found == {tuple(range(start, start + 4)) for start in range(1, 8)}


def test_short_clip_lies_anywhere_in_silence():
    crops = RandomCrops(clips(2), 4)
    found = {tuple(cut(crops[0])) for _ in range(100)}
    assert found == {(1, 2, 0, 0), (0, 1, 2, 0), (0, 0, 1, 2)}


def test_random_crops_follow_the_seed():
    crops = RandomCrops(clips(1000), 4)
    torch.manual_seed(3)
    first = [cut(crops[0]) for _ in range(5)]
    torch.manual_seed(3)
    assert [cut(crops[0]) for _ in range(5)] == first
    assert len({tuple(crop) for crop in first}) > 1


def test_sixteen_chunks_start_a_sixteenth_of_the_rest_apart():
    chunks = EqualChunks(clips(100, 36), 20, 16)
    assert len(chunks) == 32
    assert [cut(chunks[i])[0] for i in range(16)] == [1 + 5 * i for i in range(16)]
    assert [cut(chunks[16 + i])[0] for i in range(16)] == [1 + i for i in range(16)]
    assert [chunks[i]["labels"] for i in (0, 15, 16, 31)] == [0, 0, 1, 1]


def test_single_chunk_is_the_middle():
    assert cut(EqualChunks(clips(10), 4, 1)[0]) == [4, 5, 6, 7]
    assert cut(EqualChunks(clips(2), 4, 1)[0]) == [0, 1, 2, 0]


def test_chunks_of_a_short_clip_are_equal():
    chunks = EqualChunks(clips(3), 4, 3)
    assert len({tuple(cut(chunks[i])) for i in range(3)}) == 1


@pytest.mark.parametrize("several", [True, False])
def test_average_is_of_probabilities_not_of_logits(several):
    logits = np.array([[0.0, 4.0], [2.0, -1.0], [1.0, 1.0], [-3.0, 0.5]])
    labels = np.array([[1, 0], [1, 0], [0, 1], [0, 1]]) if several else np.array([1, 1, 0, 0])
    scores, kept = average_chunks(logits, labels, 2, several=several)
    exponent = np.exp(logits)
    expected = exponent / (1 + exponent) if several else exponent / exponent.sum(1, keepdims=True)
    np.testing.assert_allclose(scores, (expected[::2] + expected[1::2]) / 2)
    assert (kept == labels[::2]).all()


def test_average_refuses_chunks_that_do_not_belong_together():
    with pytest.raises(ValueError, match="different labels"):
        average_chunks(np.zeros((4, 3)), np.array([0, 1, 1, 1]), 2, several=False)
    with pytest.raises(ValueError, match="3 chunks are no multiple of chunks=2"):
        average_chunks(np.zeros((3, 3)), np.zeros(3), 2, several=False)


def test_collator_gives_waveforms_to_the_models_extractor():
    rows = [RandomCrops(clips(8, 8), 8)[i] for i in range(2)]
    batch = Collator(HarmonicCnnFeatureExtractor(min_length=10))(rows)
    assert batch["input_values"].shape == (2, 10)
    assert batch["labels"].tolist() == [0, 1]
    assert batch["labels"].dtype == torch.int64


@pytest.fixture
def tagged():
    """Random scores of 60 clips; tag 2 has no positive, tag 4 no negative."""
    draw = np.random.default_rng(0)
    labels = (draw.random((60, 6)) < 0.3).astype(float)
    labels[:, 2], labels[:, 4] = 0, 1
    return draw.random((60, 6)), labels


def load_metric(name):
    return evaluate.load(str(METRICS / name), keep_in_memory=True)


def test_tag_ranking_matches_sklearn_and_leaves_undefined_tags_out(tagged):
    scores, labels = tagged
    found = load_metric("tag_ranking").compute(predictions=scores, references=labels)
    defined = [0, 1, 3, 5]
    roc = [roc_auc_score(labels[:, t], scores[:, t]) for t in defined]
    pr = [average_precision_score(labels[:, t], scores[:, t]) for t in defined]
    assert found == {
        "roc_auc": pytest.approx(np.mean(roc), abs=1e-12),
        "pr_auc": pytest.approx(np.mean(pr), abs=1e-12),
        "undefined_tags": 2,
    }


def test_tag_ranking_of_nothing_but_undefined_tags_is_refused():
    with pytest.raises(ValueError, match="none of the 2 tags is on some clips"):
        load_metric("tag_ranking").compute(predictions=[[0.1, 0.2]] * 3, references=[[1, 0]] * 3)


def test_instance_f1_matches_sklearn_at_its_threshold(tagged):
    scores, labels = tagged
    labels[7] = 0
    metric = load_metric("instance_f1")
    for threshold in (0.1, 0.5):
        found = metric.compute(predictions=scores, references=labels, threshold=threshold)
        expected = f1_score(labels, scores >= threshold, average="samples", zero_division=1.0)
        assert found == {"f1": pytest.approx(expected), "threshold": threshold, "unseen_labels": 1}


def test_instance_f1_by_hand():
    scores = [[0.9, 0.8, 0.1], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    labels = [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    found = load_metric("instance_f1").compute(predictions=scores, references=labels, threshold=0.5)
    assert found["f1"] == pytest.approx((0.5 + 1 + 0) / 3)


def test_keyword_accuracy_matches_sklearn_with_missing_classes():
    draw = np.random.default_rng(1)
    scores, labels = draw.random((50, 5)), draw.choice([0, 1, 3], 50)
    found = load_metric("keyword_accuracy").compute(predictions=scores, references=labels)
    picked = scores.argmax(1)
    assert found == {
        "accuracy": pytest.approx((picked == labels).mean()),
        "class_accuracy": pytest.approx(
            recall_score(labels, picked, labels=[0, 1, 3], average="macro")
        ),
        "unseen_classes": 2,
    }


@pytest.mark.parametrize("name", TASKS)
def test_every_task_scores_perfect_answers_as_perfect(name):
    task = TASKS[name]
    classes = np.arange(20) % 5
    labels = np.eye(5)[classes] if task.several else classes
    logits = np.repeat(np.eye(5)[classes] * 40 - 20, task.chunks, axis=0)
    prediction = EvalPrediction(logits, np.repeat(labels, task.chunks, axis=0))
    scored = task.score(prediction, task.chunks, 0.1)
    assert {v for k, v in scored.items() if k in ("accuracy", "roc_auc", "pr_auc", "f1")} == {1.0}


@pytest.mark.parametrize("name", TASKS)
def test_loss_of_accumulated_batches_is_that_of_one(name):
    task = TASKS[name]
    logits = torch.randn(6, 5)
    labels = torch.randint(0, 2, (6, 5)).float() if task.several else torch.randint(0, 5, (6,))
    whole = task.loss({"logits": logits}, labels)
    halves = [
        task.loss({"logits": x}, y, num_items_in_batch=labels.numel())
        for x, y in zip(logits.split(3), labels.split(3), strict=True)
    ]
    torch.testing.assert_close(sum(halves), whole)
    reference = torch.nn.functional
    expected = (
        reference.binary_cross_entropy_with_logits(logits, labels)
        if task.several
        else reference.cross_entropy(logits, labels)
    )
    torch.testing.assert_close(whole, expected)
