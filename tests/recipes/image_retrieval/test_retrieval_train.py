"""Batches, the published steps, and training end to end; resuming; the small run's plan."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from recipes.common.results import Result
from recipes.image_retrieval import demo, sources
from recipes.image_retrieval.batches import (
    ClassSampler,
    RetrievalSet,
    icon_pixels,
    photo_transform,
    turn_and_move,
)
from recipes.image_retrieval.icons import Icons
from recipes.image_retrieval.sources import QUERY, Item
from recipes.image_retrieval.train import best_epoch, main
from recipes.image_retrieval.trainer import RetrievalTrainer

SMALL = [
    *("recipes/image_retrieval/configs/demo.yaml", "--embedding_size", "8"),
    *("--per_device_train_batch_size", "8", "--logging_steps", "1", "--learning_rate", "0.003"),
    *("--recall_at", "1", "2", "--eval_strategy", "epoch"),
]


@pytest.fixture(autouse=True)
def _few_icons(monkeypatch):
    """Concepts made up, so that a run takes a second."""

    def made_up(*, spare=False):
        draw = np.random.default_rng(0)
        labels = np.repeat(np.arange(12), 4)
        images = draw.integers(256, size=(12, 1, 16, 16)) + draw.integers(40, size=(12, 4, 16, 16))
        parts = ("train", "train", "test", "test", "spare", "spare") * 2
        names = tuple(map(str, range(12)))
        return Icons(images.clip(0, 255).astype(np.uint8).reshape(-1, 16, 16), labels, names, parts)

    monkeypatch.setattr(sources, "load_icons", made_up)


def train(folder, *options):
    main([*SMALL, "--output_dir", str(folder), "--num_train_epochs", "2", *options])
    return json.loads((folder / "all_results.json").read_text())


@pytest.mark.parametrize("optim", ["adamp", "adamw_torch", "sgdp"])
def test_train_scores_the_last_epoch_and_names_the_best(tmp_path, optim):
    found = train(tmp_path, "--optim", optim)
    assert 0 <= found["test_recall_at_1"] <= found["test_recall_at_2"] <= 1
    assert found["best_epoch_on_test_recall_at_1"] >= found["test_recall_at_1"]
    assert found["best_epoch_on_test"] in (1, 2)
    assert (tmp_path / "model.safetensors").is_file()
    assert (tmp_path / "projection.jsonl").read_text().count('"weight": null') == 4


def test_validation_holds_out_training_classes_and_does_not_look_at_the_test(tmp_path):
    found = train(tmp_path, "--validation_share", "0.5")
    assert "validation_recall_at_1" in found
    assert not [name for name in found if "test" in name]


def test_best_epoch_is_the_best_of_those_scored_in_training():
    history = [{"epoch": n, "eval_recall_at_1": r} for n, r in ((1, 0.2), (2, 0.5), (3, 0.4))]
    best = best_epoch([*history, {"epoch": 3, "test_recall_at_1": 0.9}, {"loss": 1.0}])
    assert best == {"best_epoch_on_test_recall_at_1": 0.5, "best_epoch_on_test": 2}
    assert best_epoch([{"epoch": 1, "loss": 1.0}]) == {}


@pytest.mark.parametrize(
    "options", [(), ("--per_class", "4"), ("--loss", "triplet", "--per_class", "2")]
)
def test_train_resumed_equals_an_uninterrupted_one(tmp_path, options):
    options = ("--optim", "adamp", "--save_strategy", "epoch", *options)
    train(tmp_path / "whole", *options)
    (tmp_path / "whole" / "checkpoint-2").rename(tmp_path / "checkpoint-2")
    resumed = ("--resume_from_checkpoint", str(tmp_path / "checkpoint-2"))
    train(tmp_path / "parts", *options, *resumed)
    bits = [(tmp_path / part / "model.safetensors").read_bytes() for part in ("whole", "parts")]
    assert bits[0] == bits[1]


def caught(monkeypatch):
    """Keep the trainer, and the weights before its first step."""
    kept = {}
    begin = RetrievalTrainer.create_optimizer

    def create(self, *args, **kwargs):
        kept["trainer"] = self
        kept["before"] = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        return begin(self, *args, **kwargs)

    monkeypatch.setattr(RetrievalTrainer, "create_optimizer", create)
    return kept


@pytest.mark.parametrize("optim", ["adamp", "adamw_torch"])
def test_proxies_have_a_rate_of_their_own_and_decay_alike(tmp_path, monkeypatch, optim):
    kept = caught(monkeypatch)
    train(tmp_path, "--optim", optim, "--lr_scheduler_type", "constant", "--weight_decay", "0.5")
    trainer = kept["trainer"]
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    groups = trainer.optimizer.param_groups
    assert len(groups) == 3
    assert [names[id(p)] for p in groups[-1]["params"]] == ["objective.proxies"]
    assert groups[-1]["lr"] == pytest.approx(10 * groups[0]["lr"]) == pytest.approx(0.03)
    assert groups[-1]["weight_decay"] == 0.5
    together = [name for group in groups for name in (names[id(p)] for p in group["params"])]
    assert sorted(together) == sorted(names.values())


@pytest.mark.parametrize(("warm", "moves"), [(2, False), (1, True)])
def test_warm_epochs_let_the_backbone_stand_still(tmp_path, monkeypatch, warm, moves):
    kept = caught(monkeypatch)
    train(tmp_path, "--optim", "adamp", "--warm_epochs", str(warm), "--weight_decay", "0.5")
    for name, parameter in kept["trainer"].model.named_parameters():
        if name.startswith("backbone."):
            assert torch.equal(parameter, kept["before"][name]) != moves, name
        else:
            assert not torch.equal(parameter, kept["before"][name]), name


def test_gradients_are_clipped_by_value(tmp_path, monkeypatch):
    largest = []
    step = torch.optim.SGD.step

    def record(self, *args, **kwargs):
        largest.extend(p.grad.abs().max().item() for g in self.param_groups for p in g["params"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", record)
    train(tmp_path, "--optim", "sgd", "--clip_value", "0.001")
    assert max(largest) == pytest.approx(0.001)


def test_backbone_of_a_trained_embedder_is_taken_over(tmp_path, monkeypatch):
    train(tmp_path / "first", "--source", "spare_icons")
    kept = caught(monkeypatch)
    options = ("--backbone", str(tmp_path / "first"), "--freeze_batch_norms", "true")
    train(tmp_path / "second", *options, "--warm_epochs", "2")
    from safetensors.torch import load_file

    first, second = (
        load_file(tmp_path / name / "model.safetensors") for name in ("first", "second")
    )
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]) == name.startswith("backbone."), name
    assert not kept["trainer"].model.batch_norms()[0].training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--per_class", "3"), "per_class=3 must be 0, or 2 or more and a divisor of the 8"),
        (("--per_class", "1"), "per_class=1 must be 0, or 2 or more"),
        (("--per_class", "-1"), "per_class=-1 must be 0 or more"),
        (("--proxy_lr_scale", "0"), "proxy_lr_scale=0.0 must be above 0"),
        (("--recall_at", "1", "99"), r"recall_at=\[1, 99\] must be from 1 to below"),
        (("--loss", "softmax"), "loss='softmax' is unknown"),
        (("--source", "mnist"), "source='mnist' is unknown"),
    ],
)
def test_train_refuses_bad_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, *options)


def test_class_sampler_deals_batches_of_several_images_a_class():
    labels = sorted([0, 1, 2, 3, 4, 5] * 5 + [6] * 2)
    sampler = ClassSampler(labels, per_class=4, batch_size=12, seed=3)
    sampler.set_epoch(1)
    numbers = list(sampler)
    assert len(numbers) == len(sampler) == 24
    for batch in np.reshape(numbers, (2, 3, 4)):
        of_class = [{labels[number] for number in images} for images in batch]
        assert all(len(found) == 1 for found in of_class)
        assert len(set.union(*of_class)) == 3
        # Only the class of two images repeats one.
        assert all(
            len(set(images)) == 4
            for images, found in zip(batch, of_class, strict=True)
            if found != {6}
        )
    assert list(sampler) == numbers
    sampler.set_epoch(2)
    assert list(sampler) != numbers


def test_class_sampler_needs_classes_enough():
    with pytest.raises(ValueError, match="needs more classes than the 2 there are"):
        ClassSampler([0, 0, 1, 1], per_class=2, batch_size=6, seed=0)


def test_icons_turn_resize_and_move_a_little():
    image = Image.fromarray(np.pad(np.full((16, 16), 255, np.uint8), 8))
    plain = icon_pixels(image)
    assert plain.shape == (1, 32, 32)
    assert plain.unique().tolist() == [-1, 1]
    areas, middles = [], []
    for _ in range(200):
        ink = (turn_and_move(image)[0] + 1) / 2
        areas.append(ink.sum().item() / 16**2)
        places = (ink > 0.5).nonzero().float().mean(dim=0)
        middles.append(places - 15.5)
    assert 0.8**2 - 0.03 < min(areas) < 0.7
    assert 1.15 < max(areas) < 1.1**2 + 0.03
    middles = torch.stack(middles)
    assert 1 < middles.abs().amax() < 2.6
    assert middles.mean(dim=0).abs().max() < 0.5


@pytest.mark.parametrize("augment", [True, False])
def test_photos_become_squares_and_say_their_role(augment):
    image = np.zeros((40, 60), np.uint8)
    rows = RetrievalSet(
        [Item(image, 3, QUERY)], photo_transform(16, augment=augment), roles=not augment
    )
    row = rows[0]
    assert row["pixel_values"].shape == (3, 16, 16)
    assert row["labels"] == 3
    assert ("roles" in row) != augment


def test_demo_trains_and_measures_filters_and_proxies(tmp_path, monkeypatch):
    config = tmp_path / "demo.yaml"
    lines = demo.CONFIG.read_text().replace("batch_size: 90", "batch_size: 8")
    lines = lines.replace("epochs: 20", "epochs: 2").replace("_steps: 10", "_steps: 1")
    config.write_text(lines)
    monkeypatch.setattr(demo, "CONFIG", config)
    job = Result("adamp", {"variant": "scratch", "lr": 1e-2, "stage": "final"}, 1)
    measures = demo.measure(tmp_path, job).measures
    assert {f"test_recall_at_{k}" for k in (1, 2, 4, 8)} <= measures.keys()
    for kind in demo.KINDS:
        assert measures[f"{kind}_growth"] > 1
        assert 0.5 < measures[f"{kind}_projected"] <= 1
