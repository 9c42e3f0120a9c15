"""The published schedule: Adam, then SGD, as two optimizers would do it by hand."""

import pytest
import torch

from recipes.audio_classification.adam_then_sgd import AdamThenSGD, published_schedule


def losses(model):
    torch.manual_seed(1)
    for _ in range(8):
        yield model(torch.randn(4, 3)).square().mean()


def build():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)


def train(model, optimizer):
    for loss in losses(model):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_steps_are_those_of_torchs_adam_and_then_sgd():
    ours, theirs = build(), build()
    train(ours, AdamThenSGD(ours.parameters(), 0.05, adam_steps=3, weight_decay=0.1))
    adam = torch.optim.Adam(theirs.parameters(), 0.05, weight_decay=0.1)
    sgd = torch.optim.SGD(theirs.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=0.1)
    for step, loss in enumerate(losses(theirs)):
        optimizer = adam if step < 3 else sgd
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("interrupted_at", [2, 3, 5])
def test_checkpoint_continues_in_the_right_phase(interrupted_at):
    whole, parted = build(), build()
    train(whole, AdamThenSGD(whole.parameters(), 0.05, adam_steps=3))
    first = AdamThenSGD(parted.parameters(), 0.05, adam_steps=3)
    optimizer = first
    for step, loss in enumerate(losses(parted)):
        if step == interrupted_at:
            optimizer = AdamThenSGD(parted.parameters(), 0.05, adam_steps=3)
            optimizer.load_state_dict(first.state_dict())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(parted.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_published_rates_stand_at_the_published_epochs():
    model = build()
    optimizer, scheduler = published_schedule(model, lr=1e-4, weight_decay=1e-4, total_steps=200)
    rates = []
    for _ in range(200):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    expected = [1e-4] * 60 + [1e-3] * 20 + [1e-4] * 20 + [1e-5] * 100
    assert rates == pytest.approx(expected)
    assert optimizer.param_groups[0]["adam_steps"] == 60


def test_negative_adam_steps_are_refused():
    with pytest.raises(ValueError, match="adam_steps=-1 must be 0 or more"):
        AdamThenSGD(build().parameters(), 0.1, adam_steps=-1)
