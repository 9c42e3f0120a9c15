"""What `MatchedArguments` add to a Trainer: Adam with L2, and a rate that falls by steps."""

import pytest
import torch
from torch import nn

from recipes.common.arms import ARMS
from recipes.common.matched_trainer import MatchedArguments, MatchedTrainer


def trainer_of(tmp_path, **options):
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    arguments = MatchedArguments(
        str(tmp_path), use_cpu=True, report_to="none", learning_rate=0.1, **options
    )
    return MatchedTrainer(model, arguments)


def test_adam_l2_puts_the_decay_into_the_gradient(tmp_path):
    options = {"adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-6, "weight_decay": 0.5}
    trainer = trainer_of(tmp_path, adam_l2=True, **options)
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.Adam
    assert [(g["weight_decay"], len(g["params"])) for g in optimizer.param_groups] == [
        (0.5, 1),
        (0.0, 3),
    ]
    assert {(g["lr"], g["betas"], g["eps"]) for g in optimizer.param_groups} == {
        (0.1, (0.8, 0.9), 1e-6)
    }


@pytest.mark.parametrize("optim", ["adamw_torch", "adamp", "sgd", "sgdp"])
def test_arm_is_named_as_in_the_tables(tmp_path, optim):
    assert trainer_of(tmp_path, optim=optim).args.arm == optim
    assert trainer_of(tmp_path, optim=optim, adam_l2=True).args.arm == "adam_l2"
    assert optim in ARMS


def test_rate_falls_by_steps_after_the_epochs_named(tmp_path):
    trainer = trainer_of(
        tmp_path, num_train_epochs=4, decay_epochs=[1, 2.5], decay_factor=0.5, warmup_steps=0
    )
    optimizer = trainer.create_optimizer()
    schedule = trainer.create_scheduler(num_training_steps=8, optimizer=optimizer)
    assert trainer.create_scheduler(num_training_steps=8, optimizer=optimizer) is schedule
    rates = []
    for _ in range(8):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.1] * 2 + [0.05] * 3 + [0.025] * 3)


def test_without_decay_epochs_the_schedule_is_transformers(tmp_path):
    trainer = trainer_of(tmp_path, lr_scheduler_type="constant", max_steps=4)
    schedule = trainer.create_scheduler(4, trainer.create_optimizer())
    assert schedule.get_last_lr() == [0.1, 0.1]


def test_impossible_factor_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"decay_factor=0 must be above 0, such as 0\.1"):
        trainer_of(tmp_path, decay_factor=0)
