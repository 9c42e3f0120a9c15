"""The log that the launcher adds to trainers: which ones get it, and where each writes."""

import pytest
import transformers

from hf_adamp import ProjectionLog
from hf_adamp.integration.trainer_log import TrainerLog


@pytest.fixture
def attached(monkeypatch, tmp_path):
    # Gives the class its own method back when the test ends.
    monkeypatch.setattr(transformers.Trainer, "__init__", transformers.Trainer.__init__)
    log = TrainerLog(tmp_path / "log.jsonl")
    log.attach()
    return log


def logs_of(trainer):
    return [c for c in trainer.callback_handler.callbacks if isinstance(c, ProjectionLog)]


def test_each_trainer_writes_a_file_of_its_own(attached, make_args, resnet, images, tmp_path):
    for _ in range(2):
        args = make_args(optim="adamp", logging_steps=1)
        transformers.Trainer(resnet, args, train_dataset=images).train()
    assert [path.name for path in sorted(tmp_path.glob("*.jsonl"))] == ["log-2.jsonl", "log.jsonl"]
    assert attached.trainers == 2


def test_subclass_gets_one_log(attached, make_args, resnet):
    class Own(transformers.Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    assert len(logs_of(Own(resnet, make_args()))) == 1


def test_a_log_of_the_script_stays_alone(attached, make_args, resnet):
    own = ProjectionLog()
    assert logs_of(transformers.Trainer(resnet, make_args(), callbacks=[own])) == [own]
