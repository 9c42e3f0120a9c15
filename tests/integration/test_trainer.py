"""A Trainer with our optimizers: groups, options, log line, resume, search, model card."""

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerCallback
from transformers.utils import logging as transformers_logging

from hf_adamp import SGDP, AdamP, AdamPMixin, AdamPTrainer, create_optimizer, get_param_groups

CLASSES = {"adamp": AdamP, "sgdp": SGDP}


@pytest.fixture
def log(caplog, monkeypatch):
    """Records of our logger, each once: releases of Transformers differ in what they propagate."""
    logger = logging.getLogger("transformers.hf_adamp")
    monkeypatch.setattr(logger, "propagate", False)
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def decayed_names(model, optimizer):
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in decayed}


@pytest.mark.parametrize("name", CLASSES)
def test_flag_builds_the_optimizer_from_the_arguments(name, make_args, resnet):
    args = make_args(optim=name, optim_args="delta=0.05,nesterov=false", learning_rate=1e-3)
    optimizer = Trainer(resnet, args).create_optimizer()
    assert type(optimizer) is CLASSES[name]
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.01}
    for group in optimizer.param_groups:
        assert (group["lr"], group["delta"], group["nesterov"]) == (1e-3, 0.05, False)


def test_flag_spares_batch_norm_from_weight_decay(make_args, resnet):
    optimizer = Trainer(resnet, make_args(optim="adamp")).create_optimizer()
    decayed = decayed_names(resnet, optimizer)
    assert decayed
    assert not [name for name in decayed if "normalization" in name]


def test_groups_option_keeps_the_rule_of_transformers(make_args, resnet):
    trainer = Trainer(resnet, make_args(optim="adamp", optim_args="groups=transformers"))
    decayed = decayed_names(resnet, trainer.create_optimizer())
    assert decayed == set(trainer.get_decay_parameter_names(resnet))
    assert [name for name in decayed if "normalization" in name]


def test_groups_option_keeps_an_overridden_rule(make_args, resnet):
    class HeadOnly(Trainer):
        def get_decay_parameter_names(self, model):
            return ["classifier.1.weight"]

    trainer = HeadOnly(resnet, make_args(optim="adamp", optim_args="groups=transformers"))
    assert decayed_names(resnet, trainer.create_optimizer()) == {"classifier.1.weight"}


def declared_names(model, optimizer):
    """The names of the weights with rows, by what their group declares."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    declared = {}
    for group in optimizer.param_groups:
        of_value = declared.setdefault(group["scale_invariant"], set())
        of_value |= {names[id(p)] for p in group["params"] if p.ndim > 1}
    return {value: found for value, found in declared.items() if found}


def granularities_of(model):
    """What is known of a ResNet: its convolutions per row, its head not at all."""
    matrices = {name for name, p in model.named_parameters() if p.ndim > 1}
    return {name: None if "classifier" in name else "row" for name in matrices}


@pytest.mark.parametrize("name", CLASSES)
def test_scale_invariant_flag_declares_all_weights(name, make_args, resnet, images):
    args = make_args(optim=name, optim_args="scale_invariant=row")
    trainer = Trainer(resnet, args, train_dataset=images)
    trainer.train()
    (declared,) = declared_names(resnet, trainer.optimizer.optimizer)
    assert declared == "row"


@pytest.mark.parametrize("make", [Trainer, AdamPTrainer], ids=lambda cls: cls.__name__)
def test_scale_invariant_flag_takes_a_report(make, make_args, resnet, images, tmp_path, log):
    granularities = granularities_of(resnet)
    file = tmp_path / "report.json"
    file.write_text(json.dumps(granularities))
    args = make_args(
        optim="adamp",
        optim_args=f"scale_invariant={file}",
        learning_rate=1e-2,
        save_strategy="steps",
        save_steps=1,
    )
    trainer = make(resnet, args, train_dataset=images)
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    expected = {
        value or False: {name for name, other in granularities.items() if other is value}
        for value in (None, "row")
    }
    assert declared_names(resnet, optimizer) == expected
    assert declared_names(resnet, create_optimizer(resnet, args)) == expected
    assert "scale_invariant=row on 6 weights" in log.records[0].getMessage()
    # A checkpoint of the Trainer brings the groups and their declarations back.
    again = make(resnet, args, train_dataset=images)
    again.train(resume_from_checkpoint=str(Path(args.output_dir) / "checkpoint-1"))
    assert declared_names(resnet, again.optimizer.optimizer) == expected


def test_scale_invariant_report_of_another_model_is_refused(make_args, resnet):
    text = {"scale_invariant": {"classifer.1.weight": None}}
    args = make_args(optim="adamp")
    args.optim_args = text
    with pytest.raises(ValueError, match=r'did you mean "classifier\.1\.weight"'):
        Trainer(resnet, args).create_optimizer()
    with pytest.raises(ValueError, match="cannot be found without the model"):
        Trainer.get_optimizer_cls_and_kwargs(args)


def test_bad_option_stops_before_training(make_args, resnet, images):
    trainer = Trainer(resnet, make_args(optim="adamp", optim_args="detla=1"), train_dataset=images)
    with pytest.raises(ValueError, match='unknown key "detla", did you mean "delta"'):
        trainer.train()


def test_comma_in_betas_gets_our_message(make_args, resnet):
    trainer = Trainer(resnet, make_args(optim="adamp", optim_args="betas=0.9,0.99"))
    with pytest.raises(ValueError, match=r"write betas=0\.9:0\.99"):
        trainer.create_optimizer()


def test_value_out_of_range_is_refused_by_the_optimizer(make_args, resnet):
    trainer = Trainer(resnet, make_args(optim="adamp", optim_args="delta=-1"))
    with pytest.raises(ValueError, match="delta"):
        trainer.create_optimizer()


def test_create_optimizer_equals_the_flag(make_args, resnet):
    args = make_args(optim="adamp", optim_args="wd_ratio=0.2", learning_rate=1e-3)
    hook, flag = create_optimizer(resnet, args), Trainer(resnet, args).create_optimizer()
    assert hook.state_dict() == flag.state_dict()
    assert hook.defaults == flag.defaults


@pytest.mark.parametrize(("optim", "cls"), [("adamw_torch", AdamP), ("sgdp", SGDP)])
def test_create_optimizer_is_adamp_unless_sgdp(optim, cls, make_args, resnet):
    assert type(create_optimizer(resnet, make_args(optim=optim))) is cls


def test_finished_optimizer_is_used_as_it_is(make_args, resnet, images):
    args = make_args(optim_args="delta=0.05")
    optimizer = create_optimizer(resnet, args)
    trainer = Trainer(resnet, args, train_dataset=images, optimizers=(optimizer, None))
    trainer.train()
    assert trainer.optimizer.optimizer is optimizer
    assert optimizer.state


def test_optimizer_cls_and_kwargs_train(make_args, resnet, images):
    kwargs = {"params": get_param_groups(resnet, 0.1), "lr": 1e-3, "delta": 0.05}
    trainer = Trainer(
        resnet, make_args(), train_dataset=images, optimizer_cls_and_kwargs=(AdamP, kwargs)
    )
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert (type(optimizer), optimizer.defaults["delta"]) == (AdamP, 0.05)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


@pytest.mark.parametrize(
    ("optim", "cls"), [("adamw_torch", AdamP), ("adamp", AdamP), ("sgdp", SGDP)]
)
def test_adamp_trainer_trains_with_our_optimizers(optim, cls, make_args, resnet, images):
    args = make_args(optim=optim, optim_args="delta=0.05")
    trainer = AdamPTrainer(resnet, args, train_dataset=images)
    trainer.train()
    assert type(trainer.optimizer.optimizer) is cls
    assert trainer.optimizer.param_groups[0]["delta"] == 0.05
    assert args.optim == optim
    assert trainer.args.optim == ("sgdp" if cls is SGDP else "adamp")


def test_adamp_trainer_says_that_it_replaces_a_chosen_optimizer(make_args, resnet, log):
    AdamPTrainer(resnet, make_args(optim="adafactor")).create_optimizer()
    (warning,) = [r.getMessage() for r in log.records if r.levelno == logging.WARNING]
    assert "trains with adamp instead of optim=adafactor" in warning


def test_adamp_trainer_leaves_a_given_optimizer_alone(make_args, resnet):
    optimizer = torch.optim.SGD(resnet.parameters(), lr=0.1)
    trainer = AdamPTrainer(resnet, make_args(), optimizers=(optimizer, None))
    assert trainer.create_optimizer() is optimizer
    assert trainer.args.optim != "adamp"


def test_mixin_calls_the_create_optimizer_to_its_right(make_args, resnet):
    class Counting(Trainer):
        calls = 0

        def create_optimizer(self, *args, **kwargs):
            self.calls += 1
            return super().create_optimizer(*args, **kwargs)

    class Mixed(AdamPMixin, Counting):
        pass

    trainer = Mixed(resnet, make_args())
    assert type(trainer.create_optimizer()) is AdamP
    assert trainer.calls == 1


def test_start_line_names_optimizer_options_and_groups(make_args, resnet, log):
    args = make_args(optim="adamp", optim_args="delta=0.05,beta1=0.8")
    Trainer(resnet, args).create_optimizer()
    (record,) = log.records
    text = record.getMessage()
    assert record.levelno == logging.INFO
    assert text.startswith(
        "AdamP(lr=5e-05, betas=(0.8, 0.999), eps=1e-08, delta=0.05, wd_ratio=0.1"
    )
    decayed, spared = get_param_groups(resnet, 0.01)
    for group in (decayed, spared):
        elements = sum(p.numel() for p in group["params"])
        count = len(group["params"])
        assert f"weight_decay={group['weight_decay']} on {count} weights ({elements:,}" in text
    normalizations = [n for n, _ in resnet.named_parameters() if n.endswith("normalization.weight")]
    assert f"differ on {len(normalizations)} weights" in text


def test_start_line_counts_groups_that_say_the_same_together(make_args, resnet, log):
    Trainer(resnet, make_args(optim="adamp", weight_decay=0.0)).create_optimizer()
    (record,) = log.records
    elements = sum(p.numel() for p in resnet.parameters())
    told = f"weight_decay=0.0 on {len(list(resnet.parameters()))} weights ({elements:,} elements)."
    assert told in record.getMessage()
    assert record.getMessage().count(" on ") == 2


@pytest.mark.parametrize(
    ("verbosity", "lines"), [("info", 1), ("warning", 1), ("error", 0), ("critical", 0)]
)
def test_start_line_is_shown_unless_only_errors_are_wanted(
    verbosity, lines, make_args, resnet, log
):
    args = make_args(optim="adamp")
    assert args.should_log  # asked here because the first time it logs the device
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.log_levels[verbosity])
    try:
        create_optimizer(resnet, args)
    finally:
        transformers_logging.set_verbosity(before)
    assert len(log.records) == lines


def test_start_line_comes_from_the_main_process_only(make_args, resnet, log, monkeypatch):
    args = make_args(optim="adamp")
    monkeypatch.setattr(type(args), "should_log", False)
    create_optimizer(resnet, args)
    assert log.records == []


def losses(trainer):
    return {e["step"]: e["loss"] for e in trainer.state.log_history if "loss" in e}


@pytest.mark.parametrize("name", CLASSES)
def test_resumed_run_equals_an_uninterrupted_one(name, make_args, images):
    from tests.integration.models import tiny_resnet

    args = make_args(
        optim=name,
        optim_args="nesterov=true" if name == "adamp" else "momentum=0.9,nesterov=true",
        learning_rate=1e-2,
        max_steps=10,
        save_strategy="steps",
        save_steps=5,
        logging_steps=1,
    )

    def run(**kwargs):
        trainer = Trainer(model_init=tiny_resnet, args=args, train_dataset=images)
        trainer.train(**kwargs)
        return trainer

    whole = run()
    resumed = run(resume_from_checkpoint=str(Path(args.output_dir) / "checkpoint-5"))
    assert len(losses(whole)) == 10
    assert losses(resumed) == losses(whole)
    for key, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[key]), key


def test_checkpoint_of_the_optimizer_loads_with_weights_only(make_args, resnet, images):
    args = make_args(optim="adamp", save_strategy="steps", save_steps=2)
    Trainer(resnet, args, train_dataset=images).train()
    path = Path(args.output_dir) / "checkpoint-2" / "optimizer.pt"
    assert torch.load(path, weights_only=True)["state"]


@pytest.mark.parametrize("cls", [Trainer, AdamPTrainer])
def test_model_card_names_the_optimizer(cls, make_args, resnet, images):
    args = make_args(optim="adamp" if cls is Trainer else "adamw_torch", optim_args="delta=0.05")
    trainer = cls(resnet, args, train_dataset=images)
    trainer.train()
    trainer.create_model_card(model_name="tiny")
    card = (Path(args.output_dir) / "README.md").read_text().lower()
    assert "adamp" in card
    assert "adamw" not in card
    assert "delta=0.05" in card


def test_hyperparameter_search_varies_delta_and_wd_ratio(make_args, images):
    pytest.importorskip("optuna", reason="needs optuna")
    from tests.integration.models import tiny_resnet

    seen = []

    class Recorder(TrainerCallback):
        def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
            seen.append({key: optimizer.param_groups[0][key] for key in ("delta", "wd_ratio")})

    def space(trial):
        delta = trial.suggest_float("delta", 0.01, 0.5, log=True)
        wd_ratio = trial.suggest_categorical("wd_ratio", [0.1, 1.0])
        return {"optim_args": f"delta={delta},wd_ratio={wd_ratio}"}

    trainer = Trainer(
        model_init=tiny_resnet,
        args=make_args(optim="adamp"),
        train_dataset=images,
        eval_dataset=images,
        callbacks=[Recorder()],
    )
    best = trainer.hyperparameter_search(space, n_trials=3, backend="optuna")
    assert len({options["delta"] for options in seen}) == 3
    assert json.dumps(best.hyperparameters["delta"]) in json.dumps([o["delta"] for o in seen])
