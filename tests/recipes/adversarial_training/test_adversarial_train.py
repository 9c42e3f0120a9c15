"""The training script, from images of CIFAR-10's layout to an attacked model."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import pipeline

from recipes.adversarial_training.attacks import ThreatModel
from recipes.adversarial_training.trainer import (
    AdversarialTrainer,
    InnerAttack,
    trades_loss,
)
from recipes.common.matched_trainer import MatchedArguments
from tests.recipes.adversarial_training.conftest import draw

ARMS = [
    {"adam_l2": "true"},
    {"optim": "adamw_torch"},
    {"optim": "adamp"},
    {"optim": "sgd", "optim_args": "momentum=0.9"},
    {"optim": "sgdp", "optim_args": "momentum=0.9"},
]


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: next(iter(arm.values())))
def test_every_arm_trains_and_is_attacked(train, tmp_path, arm):
    results = train(**arm)
    assert 0 <= results["test_attacked_accuracy"] <= 1
    assert results["strong_images"] == 8
    assert results["strong_accuracy"] == results["strong_after_square"]
    assert results["strong_after_square"] <= results["strong_after_apgd-ce"]
    assert results["strong_after_apgd-ce"] <= results["strong_after_clean"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "projection.jsonl").open()]
    assert len({row["step"] for row in rows}) == 4
    assert all(row["weight_norm"] > 0 for row in rows if row["weight"] is None)


def test_trained_model_serves_the_pipeline(train, tmp_path):
    train()
    classify = pipeline(
        "image-classification", model=str(tmp_path / "run"), trust_remote_code=True, device="cpu"
    )
    from PIL import Image

    found = classify(Image.fromarray(draw(3, 0)))
    assert len(found) == 5
    assert {row["label"] for row in found} <= set(classify.model.config.label2id)


def test_resumed_run_has_the_bits_of_an_uninterrupted_one(train, tmp_path):
    options = {"num_train_epochs": 2, "save_strategy": "epoch", "eval_strategy": "epoch"}
    options |= {"lr_scheduler_type": "cosine", "strong_attacks": "apgd-ce"}
    whole, again = tmp_path / "whole", tmp_path / "again"
    train(whole, **options)
    first = whole / "checkpoint-4"
    assert first.is_dir()
    train(again, **options, resume_from_checkpoint=first)
    weights = [load_file(folder / "model.safetensors") for folder in (whole, again)]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


class Counting(nn.Module):
    """A classifier that notes in which mode it is called, and on what."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.linear = nn.Linear(16, 3)
        self.calls = []

    def forward(self, pixel_values, labels=None):
        self.calls.append((self.training, pixel_values.detach().clone()))
        return {"logits": self.linear(self.norm(pixel_values).flatten(1))}


def trainer_of(model, tmp_path, **options):
    args = MatchedArguments(str(tmp_path), use_cpu=True, report_to="none")
    attack = InnerAttack(ThreatModel("linf", 0.1), steps=3, test_steps=4, **options)
    return AdversarialTrainer(model, args, attack=attack)


@pytest.fixture
def batch():
    return {"pixel_values": torch.rand(6, 1, 4, 4), "labels": torch.arange(6) % 3}


def test_attack_is_made_in_evaluation_mode_and_trained_on_in_training_mode(tmp_path, batch):
    model = Counting().train()
    trainer_of(model, tmp_path).compute_loss(model, batch)
    assert [training for training, _ in model.calls] == [False] * 3 + [True]
    shown = model.calls[-1][1]
    distance = (shown - batch["pixel_values"]).abs().amax()
    assert 0.05 < distance <= 0.1 + 1e-6


def test_attacked_loss_is_higher_than_the_clean_one(tmp_path, batch):
    torch.manual_seed(1)
    model = Counting().train()
    model.norm.momentum = 0.0
    trainer = trainer_of(model, tmp_path)
    attacked = trainer.compute_loss(model, batch).item()
    clean = functional.cross_entropy(model(batch["pixel_values"])["logits"], batch["labels"])
    assert attacked > clean.item() + 0.02


def test_evaluation_starts_from_the_same_noise_whatever_came_before(tmp_path, batch):
    trainer = trainer_of(Counting(), tmp_path)
    rows = [
        {"pixel_values": image, "labels": label}
        for image, label in zip(batch["pixel_values"], batch["labels"], strict=True)
    ]
    torch.manual_seed(4)
    first = trainer.predict(rows)
    torch.manual_seed(5)
    second = trainer.predict(rows)
    assert (first.predictions[1] == second.predictions[1]).all()
    assert (first.predictions[0] != first.predictions[1]).any()


def test_trades_is_its_formula_in_float64(tmp_path):
    clean, attacked = torch.randn(2, 5, 4, dtype=torch.float64)
    labels = torch.arange(5) % 4
    p, q = clean.exp(), attacked.exp()
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    apart = (p * (p / q).log()).sum(1).mean()
    likely = -p[torch.arange(5), labels].log().mean()
    torch.testing.assert_close(
        trades_loss(clean.float(), attacked.float(), labels, 6.0).double(),
        likely + 6 * apart,
        rtol=1e-5,
        atol=1e-5,
    )


def test_trades_attacks_its_own_prediction_and_sees_no_label(tmp_path, batch):
    model = Counting().train()
    trainer = trainer_of(model, tmp_path, objective="trades")
    torch.manual_seed(2)
    trainer.compute_loss(model, batch)
    # One clean prediction, three steps, then the attacked and the clean images to learn from.
    assert [training for training, _ in model.calls] == [False] * 4 + [True] * 2
    assert torch.equal(model.calls[-1][1], batch["pixel_values"])
    first, model.calls = model.calls, []
    torch.manual_seed(2)
    model.norm.reset_running_stats()
    trainer.compute_loss(model, batch | {"labels": (batch["labels"] + 1) % 3})
    assert torch.equal(first[-2][1], model.calls[-2][1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "free"}, "objective='free' is unknown; known: pgd, trades"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"step_size": "-1"}, "step_size=-1.0 must be above 0, or None"),
        ({"norm": "l1"}, "norm='l1' is unknown"),
        ({"radius": "0"}, "radius=0.0 must be above 0, such as 8/255"),
        ({"strong_attacks": "cw"}, "strong_attacks has unknown parts cw; known parts: apgd-ce"),
        ({"model": "vit"}, "model='vit' is unknown; known: wide_resnet, small_convnet"),
        ({"decay_factor": 0}, "decay_factor=0.0 must be above 0"),
    ],
)
def test_impossible_options_are_refused(train, options, message):
    with pytest.raises(ValueError, match=message):
        train(**options)
