"""Accuracy over clips and over classes as a local `evaluate` module: no network is needed."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, recall_score


class KeywordAccuracy(evaluate.Metric):
    """The share of clips whose most probable class is theirs."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of clips classified rightly, and the mean of that share over the "
            "classes that occur. `unseen_classes` counts those which no clip has.",
            citation="",
            inputs_description="predictions: a score a class; references: the class number.",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions: list[list[float]], references: list[int]) -> dict[str, float]:
        scores = np.array(predictions)
        predicted, seen = scores.argmax(axis=1), sorted(set(references))
        return {
            "accuracy": float(accuracy_score(references, predicted)),
            "class_accuracy": float(
                recall_score(references, predicted, labels=seen, average="macro", zero_division=0.0)
            ),
            "unseen_classes": scores.shape[1] - len(seen),
        }
