"""Macro ROC-AUC and PR-AUC as a local `evaluate` module: `evaluate.load` needs no network."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score


class TagRanking(evaluate.Metric):
    """How well each tag's scores rank the clips that have it before those that have not."""

    def _info(self) -> evaluate.MetricInfo:
        scores = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description="Area under the ROC and the precision-recall curve, averaged over tags. "
            "A tag that no clip has, or that every clip has, has no ROC curve: both averages leave "
            "it out, and `undefined_tags` counts such tags.",
            citation="",
            inputs_description="predictions: a score a tag; references: 1 where a clip has it.",
            features=datasets.Features({"predictions": scores, "references": scores}),
        )

    def _compute(
        self, predictions: list[list[float]], references: list[list[float]]
    ) -> dict[str, float]:
        scores, present = np.array(predictions), np.array(references) > 0
        defined = present.any(axis=0) & ~present.all(axis=0)
        if not defined.any():
            raise ValueError(
                f"none of the {len(defined)} tags is on some clips and not on others, so there is "
                "nothing to rank; evaluate on more clips."
            )
        scores, present = scores[:, defined], present[:, defined]
        return {
            "roc_auc": float(roc_auc_score(present, scores, average="macro")),
            "pr_auc": float(average_precision_score(present, scores, average="macro")),
            "undefined_tags": int((~defined).sum()),
        }
