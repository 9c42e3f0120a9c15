"""StepLog in a loop of one's own: the callback's values, Accelerate's wrapper, and no sync."""

import json
import re

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from hf_adamp import SGDP, AdamP, ProjectionLog
from hf_adamp.diagnostics import StepLog
from hf_adamp.diagnostics.steps import RecordedSteps
from hf_adamp.optim.records import StepRecord
from tests.diagnostics.tiny_training import COMMON, PROJECTION, Net, make_trainer, read_lines


@pytest.fixture
def accelerator():
    made = Accelerator(cpu=True, gradient_accumulation_steps=2)
    yield made
    made.free_memory()
    made.gradient_state._reset_state()


def batches(count):
    torch.manual_seed(0)
    return [(torch.randn(4, 1, 6, 6), torch.randint(3, (4,))) for _ in range(count)]


def train(model, optimizer, log, data):
    """Take a step a batch; return what the log said."""
    told = []
    for pixels, labels in data:
        optimizer.zero_grad()
        loss = model(pixels, labels)["loss"]
        loss.backward()
        optimizer.step()
        if numbers := log.read(loss=loss.detach()):
            told.append((log.step, numbers))
    return told


@pytest.mark.parametrize("optimizer_class", [AdamP, SGDP, torch.optim.AdamW])
def test_loop_tells_what_the_callback_tells(tmp_path, optimizer_class):
    by_callback = tmp_path / "callback.jsonl"
    trainer = make_trainer(
        tmp_path,
        [ProjectionLog(jsonl=by_callback, weights="conv")],
        optimizer=optimizer_class,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
    )
    model = Net()
    model.load_state_dict(trainer.model.state_dict())
    loader = trainer.get_train_dataloader()
    data = []
    # What the Trainer feeds its model, in its order.
    trainer.model.register_forward_pre_hook(
        lambda _, args, kwargs: data.append((kwargs["pixel_values"], kwargs["labels"])),
        with_kwargs=True,
    )
    assert len(loader) == 3
    trainer.train()

    by_loop = tmp_path / "loop.jsonl"
    optimizer = optimizer_class(model.parameters(), lr=0.01)
    with StepLog(optimizer, model, every=2, jsonl=by_loop, weights="conv") as log:
        told = train(model, optimizer, log, data)

    assert [step for step, _ in told] == [2, 4, 6]
    for (_, numbers), entry in zip(told, trainer.state.log_history, strict=False):
        ours = {key for key in entry if re.match("weight|update|effective|channel|.*proj|rad", key)}
        assert ours == numbers.keys() - {"loss"}
        assert {key: numbers[key] for key in ours} == pytest.approx({k: entry[k] for k in ours})
    lines, expected = read_lines(by_loop), read_lines(by_callback)
    for line, other in zip(lines, expected, strict=True):
        other.pop("epoch")
        assert line.keys() == other.keys()
        assert (line["weight"], line["step"]) == (other["weight"], other["step"])
        # The Trainer's loss is the mean since the last log.
        assert line["weight_norm"] == pytest.approx(other["weight_norm"])


class Tracker(GeneralTracker):
    """Stands for TensorBoard, wandb and the others behind `accelerator.log`."""

    name = "told"
    requires_logging_directory = False
    tracker = None

    def __init__(self):
        super().__init__()
        self.seen = []

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **_):
        self.seen.append((step, values))


def test_accelerate_loop_counts_the_steps_that_were_taken(accelerator):
    tracker = Tracker()
    accelerator.trackers = [tracker]
    model = Net()
    optimizer = AdamP(model.parameters(), lr=0.01)
    model, optimizer = accelerator.prepare(model, optimizer)
    log = StepLog(optimizer, model, every=2)
    for pixels, labels in batches(8):
        with accelerator.accumulate(model):
            loss = model(pixels, labels)["loss"]
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if numbers := log.read(loss=loss):
            accelerator.log(numbers, step=log.step)
    log.close()
    assert [step for step, _ in tracker.seen] == [2, 4]
    for _, numbers in tracker.seen:
        assert numbers.keys() >= COMMON | PROJECTION | {"loss", "weight_norm/Conv2d"}
        assert all(isinstance(value, float) for value in numbers.values())
        assert numbers["projected_channel/Conv2d"] == 1.0


def test_step_is_read_once_and_only_where_it_is_due():
    model = Net()
    optimizer = AdamP(model.parameters(), lr=0.01)
    log = StepLog(optimizer, model, every=3)
    assert log.read() == {}
    assert [step for step, _ in train(model, optimizer, log, batches(7))] == [3, 6]
    train(model, optimizer, log, batches(1))
    assert log.step == 8
    assert log.read() == {}


def test_loss_is_not_looked_at_on_other_steps():
    class Untouchable:
        def __float__(self):
            raise AssertionError("this would wait for the device")

    model = Net()
    optimizer = AdamP(model.parameters(), lr=0.01)
    log = StepLog(optimizer, model, every=2)
    train(model, optimizer, log, batches(1))
    assert log.read(loss=Untouchable()) == {}


def test_closing_leaves_the_optimizer_as_it_was():
    model = Net()
    optimizer = AdamP(model.parameters(), lr=0.01)
    with StepLog(optimizer, model) as log:
        assert optimizer.record_steps
    train(model, optimizer, log, batches(1))
    assert log.step == 0
    assert not optimizer.record_steps


def test_resumed_loop_continues_the_file(tmp_path):
    model, file = Net(), tmp_path / "log.jsonl"
    optimizer = AdamP(model.parameters(), lr=0.01)
    for taken in (0, 2):
        with StepLog(optimizer, model, jsonl=file, steps_taken=taken) as log:
            train(model, optimizer, log, batches(2))
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()[::3]] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"every": 0}, r"every=0 must be at least 1"),
        ({"steps_taken": -1}, r"steps_taken=-1 must be at least 0"),
        ({"weights": "["}, r"weights='\[' must be a regular expression"),
    ],
)
def test_bad_option_is_rejected_before_the_optimizer_is_touched(option, message):
    model = Net()
    optimizer = AdamP(model.parameters())
    with pytest.raises(ValueError, match=message):
        StepLog(optimizer, model, **option)
    assert not optimizer.record_steps


def test_counting_a_step_reads_no_value():
    # A meta tensor has no values, so whatever would wait for a device raises here.
    empty = torch.empty(2, device="meta")
    record = StepRecord((empty, empty), empty.char(), *[empty] * 6)
    optimizer = AdamP([torch.nn.Parameter(torch.zeros(2, 2))])
    reader = RecordedSteps(optimizer)
    optimizer.last_step = [record]
    for _ in range(3):
        reader.before_step(wanted=False)
        reader.after_step()
    with pytest.raises((NotImplementedError, RuntimeError)):
        reader.read()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("optimizer_class", [AdamP, SGDP, torch.optim.AdamW])
def test_steps_between_logs_do_not_wait_for_the_gpu(optimizer_class):
    model = Net().cuda()
    optimizer = optimizer_class(model.parameters(), lr=0.01)
    data = [(pixels.cuda(), labels.cuda()) for pixels, labels in batches(5)]
    with StepLog(optimizer, model, every=5) as log:
        train(model, optimizer, log, data[:1])
        torch.cuda.set_sync_debug_mode("error")
        try:
            train(model, optimizer, log, data[1:4])
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert [step for step, _ in train(model, optimizer, log, data[4:])] == [5]
