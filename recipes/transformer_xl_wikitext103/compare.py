"""Compare AdamW and AdamP over finished runs, plain and weight-normalised: tables and a picture.

    python -m recipes.transformer_xl_wikitext103.compare runs/transformer_xl_demo

reads every finished run in folders named MODEL-OPTIMIZER-SEED, such as plain-adamp-1, and writes
comparison.png beside them. Weight norms and steps are those of the linear layers' weights, which
the two models parametrize differently; where they are weight-normalised, of their directions.
"""

import json
import math
import statistics
import sys
from pathlib import Path

from hf_adamp.diagnostics.plots import plot_runs, read_run
from recipes.common.tables import format_cell, format_table

MODELS = {"plain": "plain", "weight_norm": "weight-normalised"}
OPTIMIZERS = {"adamw_torch": "AdamW", "adamp": "AdamP"}
Runs = dict[tuple[str, str], dict[str, Path]]  # (model, optimizer) -> seed -> folder


def find_runs(root: Path) -> Runs:
    """Return the finished runs of a folder, by model, optimizer and seed."""
    runs: Runs = {}
    for results in sorted(root.glob("*-*-*/test_results.json")):
        model, optimizer, seed = results.parent.name.split("-")
        if model in MODELS and optimizer in OPTIMIZERS:
            runs.setdefault((model, optimizer), {})[seed] = results.parent
    if not runs:
        sys.exit(f"{root} holds no finished run; run `make demo-transformer-xl` first.")
    order = [(model, optimizer) for model in MODELS for optimizer in OPTIMIZERS]
    return {key: runs[key] for key in order if key in runs}


def results(run: Path) -> dict[str, float]:
    """Return what a run ended with."""
    found = {}
    for split in ("train", "validation", "test"):
        found |= json.loads((run / f"{split}_results.json").read_text())
    return found


def layer_rows(run: Path) -> list[dict]:
    """Return a line a logged step with the linear layers' numbers, in the form of `ProjectionLog`.

    Norms are put together as if the weights were one vector; `projected` is the share of weights
    whose update was projected, over all steps since the line before.
    """
    log = run / "projection.jsonl"
    by_step: dict[int, list[dict]] = {}
    for line in log.open(encoding="utf-8"):
        row = json.loads(line)
        name = row["weight"] or ""
        if ".layers." in name and not name.endswith(("original0", "bias", "layer_norm.weight")):
            by_step.setdefault(row["step"], []).append(row)
    rows = []
    for overall in read_run(log):
        weights = by_step[overall["step"]]
        norms = [row["weight_norm"] for row in weights]
        steps = [row["effective_step"] * row["weight_norm"] for row in weights]
        row = {"step": overall["step"], "weight": None, "loss": overall["loss"]}
        row |= {"weight_norm": math.hypot(*norms)}
        row |= {"effective_step": math.hypot(*steps) / math.hypot(*norms)}
        if "projected_layer" in weights[0]:
            shares = [w["projected_channel"] + w["projected_layer"] for w in weights]
            row["projected"] = statistics.fmean(shares)
        rows.append(row)
    return rows


def perplexities(runs: Runs, split: str) -> str:
    """Return the table of a split: a line a model, a column an optimizer, and their difference.

    Seeds are paired: a difference is that of two runs with the same seed.
    """
    key = f"{split}_perplexity"
    rows = []
    for model, title in MODELS.items():
        values = {
            optimizer: {s: results(run)[key] for s, run in runs.get((model, optimizer), {}).items()}
            for optimizer in OPTIMIZERS
        }
        both = sorted(set.intersection(*map(set, values.values())))
        cells = [format_cell([*v.values()], 2) if v else "–" for v in values.values()]
        differences = [values["adamp"][seed] - values["adamw_torch"][seed] for seed in both]
        cells.append(format_cell(differences, 2) if both else "–")
        rows.append([title, *cells])
    return format_table([f"{split} perplexity", *OPTIMIZERS.values(), "AdamP − AdamW"], rows)


def details(runs: Runs, logs: dict[Path, list[dict]]) -> str:
    """Return the table of what training did to the linear layers' weights, and how long it took."""
    rows = []
    for (model, optimizer), seeds in runs.items():
        first, last = (
            statistics.fmean(logs[r][i]["weight_norm"] for r in seeds.values()) for i in (0, -1)
        )
        steps = [statistics.fmean(row["effective_step"] for row in logs[r]) for r in seeds.values()]
        shares = [
            statistics.fmean(row["projected"] for row in logs[r])
            for r in seeds.values()
            if "projected" in logs[r][0]
        ]
        seconds = [results(run)["train_runtime"] for run in seeds.values()]
        norms = f"{first:.1f} → {last:.1f} ({last / first - 1:+.0%})"
        share = f"{statistics.fmean(shares):.1%}" if shares else "–"
        name = f"{OPTIMIZERS[optimizer]}, {MODELS[model]}"
        rows.append([name, norms, format_cell(steps, 5), share, f"{statistics.fmean(seconds):.0f}"])
    titles = ["linear layers", "weight norm, first → last log", "mean effective step"]
    return format_table([*titles, "updates projected", "training seconds"], rows)


def draw(runs: Runs, logs: dict[Path, list[dict]], root: Path) -> Path:
    """Draw loss, weight norm and effective step of the linear layers."""
    files: dict[str, list[Path]] = {}
    for (model, optimizer), seeds in runs.items():
        label = OPTIMIZERS[optimizer] + (" + WN" if model == "weight_norm" else "")
        for run in seeds.values():
            file = run / "linear_layers.jsonl"
            # The last log may be of a learning rate of zero, which would spoil the scale.
            lines = [row for row in logs[run] if row["effective_step"] > 1e-6]
            file.write_text("".join(json.dumps(row) + "\n" for row in lines))
            files.setdefault(label, []).append(file)
    title = "The linear layers of a small Transformer-XL (WN: directions of weight normalization)"
    return plot_runs(files, root / "comparison.png", title=title)


def main() -> None:
    """Print the tables and draw the picture of the folder named on the command line."""
    root = Path(sys.argv[1])
    runs = find_runs(root)
    logs = {run: layer_rows(run) for seeds in runs.values() for run in seeds.values()}
    counts = sorted({len(seeds) for seeds in runs.values()})
    print(f"\nseeds: {' or '.join(map(str, counts))}; mean ± standard deviation\n")
    for split in ("validation", "test"):
        print(perplexities(runs, split), end="\n\n")
    print(details(runs, logs))
    print(f"\nplot: {draw(runs, logs, root)}")


if __name__ == "__main__":
    main()
