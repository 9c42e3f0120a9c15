"""The small run's settings and tables, and the configurations of the full one."""

import json
from pathlib import Path

import pytest
import torch

from recipes.adversarial_training import compare, demo
from recipes.adversarial_training.sources import Images, Source
from recipes.adversarial_training.train import (
    AttackArguments,
    DataArguments,
    ModelArguments,
    build_model,
)
from recipes.common.arguments import parse
from recipes.common.arms import ARMS
from recipes.common.matched_trainer import MatchedArguments
from recipes.common.results import ResultsFile

CONFIGS = Path(demo.CONFIG).parent
CLASSES = (ModelArguments, DataArguments, AttackArguments, MatchedArguments)


@pytest.mark.parametrize(
    ("threat", "norm", "radius"),
    [
        ("linf_4", "linf", 4 / 255),
        ("linf_8", "linf", 8 / 255),
        ("l2_80", "l2", 80 / 255),
        ("l2_128", "l2", 128 / 255),
    ],
)
def test_full_size_configurations_have_the_radii_they_name(tmp_path, threat, norm, radius):
    files = [str(CONFIGS / "full.yaml"), str(CONFIGS / f"{threat}.yaml")]
    model, data, attack, args = parse(CLASSES, [*files, "--output_dir", str(tmp_path)])
    inner = attack.inner()
    assert (inner.threat.norm, inner.threat.radius) == (norm, pytest.approx(radius))
    assert (inner.steps, inner.test_steps, inner.objective) == (10, 10, "pgd")
    # A step of 2.5 radii over 10, such as 2/255 at 8/255.
    assert inner.length(10) == pytest.approx(radius / 4)
    assert (model.depth, model.widen_factor, data.source) == (28, 10, "hub")
    assert (args.num_train_epochs, args.decay_epochs, args.arm) == (110, [100, 105], "adamp")


def test_trades_configuration_is_the_published_one(tmp_path):
    files = [str(CONFIGS / f"{name}.yaml") for name in ("full", "linf_8", "trades", "sgd")]
    model, _, attack, args = parse(CLASSES, [*files, "--output_dir", str(tmp_path)])
    inner = attack.inner()
    assert (model.depth, inner.objective, inner.trades_beta) == (34, "trades", 6)
    assert (inner.threat.radius, inner.step_size) == (0.031, 0.007)
    assert (args.learning_rate, args.arm, args.decay_epochs) == (0.1, "sgd", [75])


def test_demo_reads_its_configuration(tmp_path):
    job = next(iter(demo.jobs_of([1], ["l2"], ["sgdp"])))
    model, data, attack, args = parse(CLASSES, demo.options_of(job, tmp_path))
    assert (model.model, data.source, data.train_images) == ("small_convnet", "silhouettes", 2500)
    assert (attack.norm, attack.strong_attacks) == ("l2", ["apgd-ce", "apgd-dlr", "square"])
    assert (args.arm, args.optim_args) == ("sgdp", "momentum=0.9")
    pixels = torch.zeros(2, 1, 28, 28)
    source = Source({"train": Images(pixels, None)}, ("a", "b"))
    assert sum(weight.numel() for weight in build_model(model, source).parameters()) == 60530


def test_search_never_sees_the_test_set(tmp_path, monkeypatch):
    asked = []

    def run(*_, test):
        asked.append(test)
        return pretend(_[3], 0.5)

    monkeypatch.setattr(demo, "run", run)
    demo.main([str(tmp_path), "--search", "--arms", "adamp"])
    assert asked == [False] * len(demo.GRID["adamp"]) * len(demo.SEARCH_SEEDS)


def pretend(args, attacked):
    """Write what a run writes, and return what it returns."""
    rows = [
        {"step": step, "weight": name, "weight_norm": 2.0 * step, "effective_step": 0.1, "loss": 1}
        | {"not_projected": 0.0, "projected_channel": 1.0, "update_norm": 0.1}
        for step in (1, 2)
        for name in (None, "blocks.0.convolution.weight")
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (Path(args.output_dir) / "projection.jsonl").write_text(lines)
    return {
        "validation_attacked_accuracy": attacked,
        "test_clean_accuracy": attacked + 0.1,
        "test_attacked_accuracy": attacked,
        "strong_accuracy": attacked - 0.1,
        "train_runtime": 1.0,
    }


def test_demo_runs_every_arm_once_and_compare_tells_the_differences(tmp_path, monkeypatch, capsys):
    gain = {"adamp": 0.04, "sgdp": 0.02}
    monkeypatch.setattr(
        demo, "run", lambda *a, test: pretend(a[3], 0.6 + gain.get(a[3].arm, 0) + a[3].seed / 100)
    )
    for _ in range(2):
        demo.main([str(tmp_path), "--seeds", "1", "2"])
    results = ResultsFile(tmp_path / "results.jsonl").read()
    assert [(r.arm, r.seed) for r in results] == [(arm, s) for s in (1, 2) for arm in ARMS]
    assert results[0].measures["growth"] == 2
    assert results[0].measures["projected"] == 1
    monkeypatch.setattr("sys.argv", ["compare", str(tmp_path)])
    compare.main()
    printed = capsys.readouterr().out
    assert "| AdamP − AdamW" in printed
    assert "| +4.0 ± 0.0 | +4.0 ± 0.0 | +4.0 ± 0.0" in printed
    assert "| SGDP − SGD" in printed
    assert "65.5 ± 0.7" in printed
    for picture in ("linf-accuracy.png", "linf-training.png"):
        assert (tmp_path / picture).stat().st_size > 10_000


def test_compare_says_where_nothing_is(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["compare", str(tmp_path)])
    with pytest.raises(SystemExit, match="holds no finished run"):
        compare.main()
