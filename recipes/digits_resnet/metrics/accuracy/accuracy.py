"""Accuracy as a local `evaluate` module: `evaluate.load` on this folder needs no network."""

import datasets
import evaluate


class Accuracy(evaluate.Metric):
    """The share of predictions that equal their reference."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of predictions that equal their reference, from 0 to 1.",
            citation="",
            inputs_description="predictions and references: one class number an example.",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        return {"accuracy": sum(int(p == r) for p, r in pairs) / len(references)}
