"""Pictures of finished runs: the learnt filters, the confusions, the ROC and PR curves."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from .modeling_harmonic_cnn import HarmonicCnnForAudioClassification

__all__ = ["plot_confusions", "plot_curves", "plot_filters"]

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
LINES = ("-", "--", "-.", ":")
GRID = np.linspace(0, 1, 201)

Predictions = Mapping[str, np.ndarray]


def _canvas(columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * columns, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(np.ravel(figure.subplots(1, columns)))


def _save(figure: Figure, output: Path) -> Path:
    figure.savefig(output)
    return output


def _tidy(axis: Axes) -> None:
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def plot_filters(runs: Mapping[str, Sequence[Path]], output: Path) -> Path:
    """Draw one learnt filter bank, and Q before and after training.

    Args:
        runs: a label, and the folders of its models; the first of all is drawn whole.
        output: the picture.
    """
    models = {
        label: [HarmonicCnnForAudioClassification.from_pretrained(f) for f in folders]
        for label, folders in runs.items()
    }
    shown = next(iter(models.values()))[0]
    figure, (bank, learnt) = _canvas(2, 5.6, 4.0)
    response = shown.filters.filter_bank().detach().amax(0).numpy()
    top = shown.config.sample_rate / 2000
    picture = bank.imshow(
        response, origin="lower", aspect="auto", cmap="magma", extent=(0, top, 0, len(response))
    )
    figure.colorbar(picture, ax=bank, label="response, loudest harmonic")
    bank.set(xlabel="frequency (kHz)", ylabel="band (from C1, two a semitone)")
    bank.set_title(f"Learnt filter bank, {next(iter(models))}", fontsize=11)

    for number, seeds in enumerate(models.values()):
        found = [model.filters.q.item() for model in seeds]
        colour = COLOURS[number % len(COLOURS)]
        learnt.plot([number] * len(found), found, "o", color=colour, alpha=0.7)
        learnt.plot([number - 0.2, number + 0.2], [np.mean(found)] * 2, color=colour)
    learnt.axhline(shown.config.bw_q, color="black", linestyle=":", label="before training")
    learnt.set_xticks(range(len(models)), models)
    learnt.set(xlim=(-0.6, len(models) - 0.4), ylabel="Q; bandwidths are divided by it")
    learnt.set_title("Learnt Q of every seed, and their mean", fontsize=11)
    learnt.legend(frameon=False)
    _tidy(learnt)
    return _save(figure, output)


def plot_confusions(runs: Mapping[str, Sequence[Predictions]], output: Path) -> Path:
    """Draw a confusion matrix a label, the seeds added up.

    Args:
        runs: a label, and `scores`, `labels` and `names` of its seeds.
        output: the picture.
    """
    figure, axes = _canvas(len(runs), 5.6, 5.2)
    for axis, (label, seeds) in zip(axes, runs.items(), strict=True):
        names = [str(name) for name in seeds[0]["names"]]
        total = sum(
            confusion_matrix(s["labels"], s["scores"].argmax(1), labels=range(len(names)))
            for s in seeds
        )
        right = np.trace(total) / total.sum()
        axis.imshow(total, cmap="Blues")
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axis.set_yticks(range(len(names)), names, fontsize=6)
        axis.set(xlabel="heard", ylabel="said")
        axis.set_title(f"{label}: {right:.1%} of {total.sum()} right", fontsize=11)
        for row, column in zip(*np.nonzero(total), strict=True):
            dark = total[row, column] > total.max() / 2
            axis.text(
                column,
                row,
                total[row, column],
                ha="center",
                va="center",
                fontsize=5,
                color="white" if dark else "black",
            )
    return _save(figure, output)


def plot_curves(runs: Mapping[str, Sequence[Predictions]], output: Path, title: str) -> Path:
    """Draw the mean ROC and precision-recall curve over tags and seeds, a line a label.

    Args:
        runs: a label, and `scores` and `labels` of its seeds.
        output: the picture.
        title: a headline.
    """
    figure, (roc, recall) = _canvas(2, 4.8, 4.2)
    for number, (label, seeds) in enumerate(runs.items()):
        style = {"color": COLOURS[number % len(COLOURS)], "linewidth": 1.8, "label": label}
        line = LINES[number % len(LINES)]
        curves = [_mean_curves(_tags(seed)) for seed in seeds]
        for axis, pick in ((roc, 0), (recall, 1)):
            lines = np.stack([curve[pick] for curve in curves])
            axis.plot(GRID, lines.mean(0), line, **style)
            axis.fill_between(
                GRID, lines.min(0), lines.max(0), color=style["color"], alpha=0.18, linewidth=0
            )
    roc.plot([0, 1], [0, 1], "k:", linewidth=0.8)
    roc.set(xlabel="false positive rate", ylabel="true positive rate")
    recall.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02))
    roc.set_title("ROC, mean over tags", fontsize=11)
    recall.set_title("Precision and recall, mean over tags", fontsize=11)
    recall.legend(frameon=False)
    for axis in (roc, recall):
        _tidy(axis)
    figure.suptitle(title, fontsize=12)
    return _save(figure, output)


def _tags(seed: Predictions) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Yield labels and scores of every tag that some clips have and others have not."""
    for present, scores in zip(seed["labels"].T, seed["scores"].T, strict=True):
        if 0 < present.sum() < len(present):
            yield present, scores


def _mean_curves(
    tags: Iterable[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    hits, precisions = [], []
    for present, scores in tags:
        false, true, _ = roc_curve(present, scores)
        hits.append(np.interp(GRID, false, true))
        precision, recall, _ = precision_recall_curve(present, scores)
        precisions.append(np.interp(GRID, recall[::-1], precision[::-1]))
    return np.mean(hits, axis=0), np.mean(precisions, axis=0)
