import pytest
import torch
from transformers import TrainingArguments

from hf_adamp import SGDP, AdamP
from recipes.common.arms import ARMS, BASELINES, make_optimizer
from recipes.common.matched_trainer import MatchedTrainer
from recipes.common.small_convnet import SmallConvNet

CLASSES = {
    "sgd": torch.optim.SGD,
    "sgdp": SGDP,
    "adam_l2": torch.optim.Adam,
    "adamw_torch": torch.optim.AdamW,
    "adamp": AdamP,
}


def test_every_arm_is_covered():
    assert CLASSES.keys() == ARMS.keys()
    assert set(BASELINES) | set(BASELINES.values()) < set(ARMS)


@pytest.mark.parametrize("arm", ARMS)
def test_arm_has_its_class_and_the_settings_it_was_given(arm):
    optimizer = make_optimizer(arm, SmallConvNet(), lr=0.1, weight_decay=0.2, momentum=0.95)
    assert type(optimizer) is CLASSES[arm]
    decays = [(g["weight_decay"], len(g["params"])) for g in optimizer.param_groups]
    assert decays == [(0.2, 5), (0.0, 9)]  # four convolutions and a linear layer; the rest
    for group in optimizer.param_groups:
        assert group["lr"] == 0.1
        assert group.get("momentum", group.get("betas", [None])[0]) == 0.95


@pytest.mark.parametrize("arm", ARMS)
def test_arm_takes_groups_that_are_made(arm):
    model = SmallConvNet()
    groups = [{"params": [*model.blocks.parameters()]}]
    groups.append({"params": [*model.classifier.parameters()], "lr": 1.0, "weight_decay": 0.5})
    optimizer = make_optimizer(arm, groups, lr=0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 1.0]
    assert optimizer.param_groups[1]["weight_decay"] == 0.5


def test_unknown_arm_is_refused():
    with pytest.raises(ValueError, match=r"arm='adam' is unknown; known arms: sgd, sgdp"):
        make_optimizer("adam", SmallConvNet(), lr=0.1)


@pytest.mark.parametrize("arm", ["adam_l2", "adamw_torch"])
def test_nesterov_is_refused_where_there_is_none(arm):
    with pytest.raises(ValueError, match="has no nesterov"):
        make_optimizer(arm, SmallConvNet(), lr=0.1, nesterov=True)


def build(tmp_path, optim, optim_args=None):
    args = TrainingArguments(
        str(tmp_path),
        optim=optim,
        optim_args=optim_args,
        learning_rate=0.1,
        weight_decay=0.2,
        adam_beta1=0.95,
        use_cpu=True,
        report_to=[],
    )
    trainer = MatchedTrainer(SmallConvNet(), args)
    return trainer.create_optimizer()


@pytest.mark.parametrize(
    ("optim", "optim_args"),
    [
        ("sgd", "momentum=0.95"),
        ("sgdp", "momentum=0.95"),
        ("adamw_torch", None),
        ("adamp", None),
    ],
)
def test_trainer_builds_the_arm_that_a_loop_would(tmp_path, optim, optim_args):
    built = build(tmp_path, optim, optim_args)
    ours = make_optimizer(optim, SmallConvNet(), lr=0.1, weight_decay=0.2, momentum=0.95)
    assert type(built) is type(ours)
    for one, other in zip(built.param_groups, ours.param_groups, strict=True):
        assert [p.shape for p in one["params"]] == [p.shape for p in other["params"]]
        for name in ("lr", "weight_decay", "momentum", "betas", "nesterov", "eps"):
            assert one.get(name) == other.get(name), name


def test_trainer_refuses_an_option_that_sgd_lacks(tmp_path):
    with pytest.raises(ValueError, match="--optim sgd knows momentum"):
        build(tmp_path, "sgd", "delta=0.1")
