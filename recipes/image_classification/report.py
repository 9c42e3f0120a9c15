"""Tables and pictures of the small form's runs.

    python -m recipes.image_classification.report demo     # print, and draw demo.png
    python -m recipes.image_classification.report full     # also write the page results/grid.md

Settings are chosen by validation accuracy; everything else that is shown is of the test set.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_adamp.diagnostics.plots import COLOURS, load_matplotlib, read_run
from recipes.common.arms import ARMS
from recipes.common.paired import PairedRow, choose, paired_table, select
from recipes.common.results import Result, ResultsFile
from recipes.common.small_convnet import CONVOLUTIONS
from recipes.common.tables import format_cell, format_table

from .grid import BATCH, DECAYS, FAMILIES, LARGE_BATCHES, MOMENTUM, RATES, RUNS, jobs, run_folder

__all__ = ["PAGE", "draw_curves", "draw_demo", "report", "tables"]

PAGE = Path(__file__).parent / "results" / "grid.md"
BASE = {"momentum": MOMENTUM, "batch": BATCH}
NAMES = {"adam": "AdamW and AdamP", "sgd": "SGD and SGDP"}
DECAY_NAMES = ("no decay", "the usual decay", "decay tuned to this run")
Setting = Mapping[str, Any]


def _pair(results: Sequence[Result], family: str, setting: Setting, title: str) -> PairedRow | None:
    """Return a family's two arms at one setting, or None where it was not run."""
    baseline, contender = (select(results, arm, setting) for arm in FAMILIES[family])
    return PairedRow(title, baseline, contender) if baseline and contender else None


def _describe(setting: Setting) -> str:
    """Write a setting for a table, without what is as everywhere."""
    text = f"rate {setting['lr']:g}, decay {setting['weight_decay']:g}"
    if setting["momentum"] != MOMENTUM:
        text += f", momentum {setting['momentum']:g}"
    if setting["batch"] != BATCH:
        text += f", batch {setting['batch']:,}"
    return text


def _table(rows: Sequence[PairedRow | None]) -> str:
    known = [row for row in rows if row is not None]
    return paired_table(known, "test_accuracy", title="test accuracy, %", scale=100)


def _settings(results: Sequence[Result], family: str) -> list[Setting]:
    """Return the settings that a family was run at, each once, in order."""
    arm = FAMILIES[family][0]
    found = {_describe(r.setting): r.setting for r in results if r.arm == arm}
    order = ("batch", "momentum", "weight_decay", "lr")
    return sorted(found.values(), key=lambda setting: [setting[name] for name in order])


def _chosen(results: Sequence[Result], family: str) -> list[PairedRow]:
    """Return each arm at its best setting by validation: at the usual decay, and of all."""
    rows = []
    among = {"the usual decay": BASE | {"weight_decay": DECAYS[family][1]}, "any decay": BASE}
    for title, setting in among.items():
        best = [
            choose(results, arm, "validation_accuracy", among=setting) for arm in FAMILIES[family]
        ]
        runs = [select(results, arm, s) for arm, s in zip(FAMILIES[family], best, strict=True)]
        described = " against ".join(map(_describe, best))
        rows.append(PairedRow(f"each at its best, {title}: {described}", *runs))
    return rows


def _norms(results: Sequence[Result], settings: Mapping[str, Setting]) -> str:
    """Return what each setting did to the filters."""
    rows = []
    for family, setting in settings.items():
        for arm in FAMILIES[family]:
            runs = select(results, arm, setting)
            growth = format_cell([r.measures["growth"] for r in runs], 2)
            turned = format_cell([r.measures["effective_step"] for r in runs], 4)
            rows.append([f"{ARMS[arm]}, {_describe(setting)}", growth, turned, str(len(runs))])
    titles = ["the filters", "norm, last / first", "mean effective step ‖Δw‖/‖w‖", "seeds"]
    return format_table(titles, rows)


def tables(results: Sequence[Result]) -> str:
    """Return all tables, with a heading each."""
    parts = []
    for family, name in NAMES.items():
        settings = _settings(results, family)
        if not settings:
            continue
        rows = [_pair(results, family, setting, _describe(setting)) for setting in settings]
        parts.append(f"### {name}\n\n{_table([*rows, *_chosen(results, family)])}")
    middle = {
        family: BASE | {"lr": RATES[family][1], "weight_decay": DECAYS[family][1]}
        for family in FAMILIES
    }
    known = {f: s for f, s in middle.items() if select(results, FAMILIES[f][0], s)}
    parts.append(f"### Norms and effective steps\n\n{_norms(results, known)}")
    seconds = [result.measures["processor_seconds"] for result in results]
    parts.append(
        f"{len(results)} runs, {sum(seconds) / 60:.0f} minutes of processor time, "
        f"{statistics.median(seconds):.1f} s a run (median)."
    )
    return "\n\n".join(parts)


def _interval(values: Sequence[float]) -> float:
    """Return half the width of Student's 95 % confidence interval of the mean; 0 for one value."""
    from scipy import stats  # noqa: PLC0415 -- of the pictures only

    if len(values) < 2:
        return 0.0
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return float(half)


def draw_curves(axis: Any, results: Sequence[Result], family: str, by: str, fixed: Setting) -> None:
    """Draw test accuracy over one setting, a line an arm, with its 95 % interval."""
    for number, arm in enumerate(reversed(FAMILIES[family])):
        runs = select(results, arm, fixed)
        places = sorted({run.setting[by] for run in runs})
        values = [
            [100 * r.measures["test_accuracy"] for r in select(runs, arm, {by: place})]
            for place in places
        ]
        axis.errorbar(
            range(len(places)),
            [statistics.fmean(of) for of in values],
            yerr=[_interval(of) for of in values],
            color=COLOURS[number],
            marker="o",
            linestyle=("-", "--")[number],
            capsize=4,
            linewidth=2,
            label=ARMS[arm],
        )
        axis.set_xticks(range(len(places)), [f"{place:g}" for place in places])
    _finish(axis, ylabel="right answers, % of the test images")


def _draw_steps(axis: Any, family: str, setting: Setting, key: str, seeds: Sequence[int]) -> None:
    """Draw what `ProjectionLog` told of the filters, the mean of the seeds."""
    for number, arm in enumerate(reversed(FAMILIES[family])):
        logs = [
            read_run(run_folder(Result(arm, setting, seed)) / "projection.jsonl", CONVOLUTIONS)
            for seed in seeds
        ]
        # The last log is of a learning rate of nearly zero, which would spoil the scale.
        rows = list(zip(*logs, strict=True))[:-1]
        steps = [same[0]["step"] for same in rows]
        values = [statistics.fmean(row[key] for row in same) for same in rows]
        if key == "weight_norm":
            values = [value / values[0] for value in values]
        style = ("-", "--")[number]
        axis.plot(steps, values, style, color=COLOURS[number], linewidth=2, label=ARMS[arm])
    _finish(axis, xlabel="step of the training")


def _finish(axis: Any, **labels: str) -> None:
    axis.set(**labels)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)


def draw_demo(results: Sequence[Result], path: Path) -> Path:
    """Draw accuracy over learning rates, norm and effective step of AdamP beside AdamW."""
    figure, (left, middle, right) = _figure(1, 3)
    usual = BASE | {"weight_decay": DECAYS["adam"][1]}
    draw_curves(left, results, "adam", "lr", usual)
    left.set(title="How often the network is right", xlabel="learning rate")
    setting = {"lr": RATES["adam"][1], "weight_decay": DECAYS["adam"][1], **BASE}
    seeds = [run.seed for run in select(results, "adamp", setting)]
    _draw_steps(middle, "adam", setting, "weight_norm", seeds)
    middle.set(title="How long its filters grow", ylabel="times their length at the start")
    _draw_steps(right, "adam", setting, "effective_step", seeds)
    right.set(title="How far a step turns them", ylabel="‖step‖ / ‖filters‖", yscale="log")
    return _save(figure, path)


def draw_adams(results: Sequence[Result], path: Path) -> Path:
    """Draw AdamW and AdamP over the learning rate, a panel a decay."""
    figure, axes = _figure(1, 3, sharey=True)
    for axis, decay, name in zip(axes, DECAYS["adam"], DECAY_NAMES, strict=True):
        draw_curves(axis, results, "adam", "lr", BASE | {"weight_decay": decay})
        axis.set(title=f"{name} ({decay:g})", xlabel="learning rate")
    return _save(figure, path)


def draw_sgds(results: Sequence[Result], path: Path) -> Path:
    """Draw SGD and SGDP over the learning rate, and over the decay."""
    figure, axes = _figure(1, 2, sharey=True)
    usual, middle = DECAYS["sgd"][1], RATES["sgd"][1]
    draw_curves(axes[0], results, "sgd", "lr", BASE | {"weight_decay": usual})
    axes[0].set(title=f"the usual decay ({usual:g})", xlabel="learning rate")
    draw_curves(axes[1], results, "sgd", "weight_decay", BASE | {"lr": middle})
    axes[1].set(title=f"a learning rate of {middle:g}", xlabel="weight decay")
    return _save(figure, path)


def _figure(rows: int, columns: int, **shared: bool) -> tuple[Any, Any]:
    figure_class, canvas_class = load_matplotlib()
    figure = figure_class(figsize=(12, 3.8 * rows), dpi=150, layout="constrained")
    canvas_class(figure)
    return figure, figure.subplots(rows, columns, **shared)


def draw_momentum_and_batch(results: Sequence[Result], path: Path) -> Path:
    """Draw accuracy over the learning rate at high momentum, and over the batch."""
    figure, grid = _figure(2, 2)
    for axes, family in zip(grid, FAMILIES, strict=True):
        usual = {"weight_decay": DECAYS[family][1]}
        draw_curves(axes[0], results, family, "lr", usual | {"momentum": 0.99, "batch": BATCH})
        axes[0].set(title="Momentum 0.99", xlabel="learning rate")
        fixed = usual | {"momentum": MOMENTUM, "lr": RATES[family][1]}
        draw_curves(axes[1], results, family, "batch", fixed)
        rule = {"adam": "its root", "sgd": "it"}[family]
        axes[1].set(title="Larger batches, as many epochs", xlabel=f"batch; rate grows with {rule}")
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def report(results: Sequence[Result], size: str) -> None:
    """Print the tables of the demo or of the full grid, and draw its pictures.

    Args:
        results: of any runs; those that do not belong to `size` are left out.
        size: "demo" or "full".
    """
    meant = {job.key for job in jobs(size)}
    known = [result for result in results if result.key in meant]
    text = tables(known)
    print(f"\nmean ± standard deviation; differences by seed, ± standard error\n\n{text}")
    if size == "demo":
        print(f"\npicture: {draw_demo(known, RUNS / 'demo.png')}")
        return
    folder = PAGE.parent
    draw_adams(known, folder / "adam.png")
    draw_sgds(known, folder / "sgd.png")
    draw_momentum_and_batch(known, folder / "momentum-and-batch.png")
    draw_demo(known, folder / "demo.png")
    PAGE.write_text(
        "# The small form's full grid\n\n"
        "Written by `make paper-images`; [what it says](../README.md#the-small-form).\n"
        "Mean ± standard deviation over seeds; differences are taken seed by seed, ± standard "
        f"error. Batches of {BATCH} and momentum {MOMENTUM} where nothing else is said; larger "
        f"batches ({', '.join(map(str, LARGE_BATCHES))}) take as many epochs, at a rate that grows "
        "with the batch (SGD) or its root (Adam).\n\n"
        "![AdamW and AdamP over rate and decay](adam.png)\n"
        "![SGD and SGDP over rate and decay](sgd.png)\n"
        f"![High momentum, and large batches](momentum-and-batch.png)\n\n{text}\n",
        encoding="utf-8",
    )
    print(f"\nwritten: {PAGE} and its pictures")


def main() -> None:
    """Report on the runs that are there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("size", choices=("demo", "full"))
    file = ResultsFile(RUNS / "results.jsonl")
    results = file.read()
    if not results:
        parser.exit(1, f"{file.path} holds no run; run `make demo` first.\n")
    report(results, parser.parse_args().size)


if __name__ == "__main__":
    main()
