"""Instance-based F1 as a local `evaluate` module: `evaluate.load` needs no network."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import f1_score


class InstanceF1(evaluate.Metric):
    """The F1 of each clip's labels at a threshold, averaged over clips."""

    def _info(self) -> evaluate.MetricInfo:
        scores = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description="F1 of every clip's labels, averaged over clips. A clip without labels of "
            "which nothing is predicted either counts 1. `unseen_labels` counts the labels which "
            "no clip has; they can only be predicted wrongly.",
            citation="",
            inputs_description="predictions: a probability a label; references: 1 where the clip "
            "has it; threshold: the probability from which on a label is predicted.",
            features=datasets.Features({"predictions": scores, "references": scores}),
        )

    def _compute(
        self, predictions: list[list[float]], references: list[list[float]], threshold: float = 0.1
    ) -> dict[str, float]:
        predicted, present = np.array(predictions) >= threshold, np.array(references) > 0
        f1 = f1_score(present, predicted, average="samples", zero_division=1.0)
        return {
            "f1": float(f1),
            "threshold": float(threshold),
            "unseen_labels": int((~present.any(axis=0)).sum()),
        }
