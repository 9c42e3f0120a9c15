import pytest
import torch

from recipes.image_classification.schedules import scaled_rate, step_schedule


def rates(steps, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = step_schedule(optimizer, **options)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_rate_falls_every_so_many_epochs():
    found = rates(90, steps_per_epoch=10, epochs=3, factor=0.1)
    assert found[29:31] == pytest.approx([1, 0.1])
    assert found[59:61] == pytest.approx([0.1, 0.01])


def test_rate_falls_after_epochs_that_are_not_whole():
    found = rates(49, steps_per_epoch=10, epochs=2.4, factor=0.97)
    assert [found[step] for step in (23, 24, 47, 48)] == pytest.approx([1, 0.97, 0.97, 0.97**2])


def test_rate_rises_in_the_warmup_and_never_exceeds_itself():
    found = rates(6, steps_per_epoch=100, epochs=1, factor=0.1, warmup_steps=3)
    assert found == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


@pytest.mark.parametrize("options", [{"epochs": 0, "factor": 0.1}, {"epochs": 1, "factor": -1}])
def test_step_that_is_not_positive_is_refused(options):
    with pytest.raises(ValueError, match="must be positive"):
        rates(1, steps_per_epoch=10, **options)


@pytest.mark.parametrize(("rule", "expected"), [("none", 0.1), ("linear", 1.6), ("sqrt", 0.4)])
def test_rate_grows_with_the_batch_by_the_rule(rule, expected):
    assert scaled_rate(0.1, batch=4096, base_batch=256, rule=rule) == pytest.approx(expected)


def test_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="known rules: none, linear, sqrt"):
        scaled_rate(0.1, batch=2, base_batch=1, rule="cube")
