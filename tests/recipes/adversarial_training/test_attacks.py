"""The attacks, beside a closed form and beside another library's."""

import pytest
import torch
import torchattacks
from torch import nn

from recipes.adversarial_training.attacks import (
    PARTS,
    Logits,
    ThreatModel,
    frozen,
    pgd,
    survivors,
    total_cross_entropy,
)

THREATS = [ThreatModel("linf", 8 / 255), ThreatModel("l2", 128 / 255)]


class Classifier(nn.Module):
    """Answers as Transformers' classifiers do."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, pixel_values):
        return {"logits": self.layers(pixel_values)}


def linear(classes=3):
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(48, classes))).double()


def convolutional():
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3)]
    return Classifier(nn.Sequential(*layers))


def grey(count=6):
    """Images far from black and white, so that no clipping disturbs the closed form."""
    return 0.5 + 0.1 * torch.randn(count, 3, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_pgd_reaches_the_worst_case_of_a_linear_model(threat):
    model, images = linear(classes=2), grey()
    labels = torch.arange(6) % 2
    first, second = model.layers[1].weight
    apart = (first - second) * (1 - 2 * labels[:, None]).double()
    dual = apart.abs().sum(1) if threat.norm == "linf" else apart.norm(dim=1)
    attacked = pgd(
        lambda shown: total_cross_entropy(model(shown)["logits"], labels),
        images,
        threat,
        steps=100,
        step_size=threat.radius / 4,
        start=threat.random(images),
    )

    def margin(shown):
        logits = model(shown)["logits"]
        return (logits[:, 0] - logits[:, 1]) * (1 - 2 * labels).double()

    lowest = margin(images) - threat.radius * dual
    torch.testing.assert_close(margin(attacked), lowest, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        threat.distance(images, attacked), torch.full((6,), threat.radius).double()
    )


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_pgd_takes_the_steps_of_torchattacks(threat):
    model, images, labels = convolutional().eval(), torch.rand(5, 3, 8, 8), torch.arange(5) % 3
    kind = torchattacks.PGD if threat.norm == "linf" else torchattacks.PGDL2
    theirs = kind(
        Logits(model), eps=threat.radius, alpha=threat.radius / 4, steps=7, random_start=False
    )
    ours = pgd(
        lambda shown: total_cross_entropy(model(shown)["logits"], labels),
        images,
        threat,
        steps=7,
        step_size=threat.radius / 4,
    )
    torch.testing.assert_close(ours, theirs(images, labels), rtol=0, atol=1e-6)
    assert not torch.equal(ours, images)


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
def test_random_start_fills_the_ball_and_stays_an_image(threat):
    images = torch.rand(2000, 1, 1, 2) * 0.2 + 0.4
    distance = threat.distance(images, threat.random(images)) / threat.radius
    assert distance.max() <= 1 + 1e-6
    # Uniform in a ball of two dimensions: half of the radius holds a quarter.
    assert abs((distance < 0.5).float().mean() - 0.25) < 0.05
    edges = threat.random(torch.tensor([0.0, 1.0]).repeat(50, 1, 1, 1))
    assert 0 <= edges.min() < edges.max() <= 1


def test_random_start_repeats_with_a_generator():
    images = torch.rand(3, 1, 4, 4)
    first, second = (THREATS[0].random(images, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, THREATS[0].random(images))


def test_attack_leaves_gradients_and_running_statistics_alone():
    model, images, labels = convolutional().train(), torch.rand(5, 3, 8, 8), torch.arange(5) % 3
    model.layers[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with frozen(model):
        assert not any(module.training for module in model.modules())
        pgd(
            lambda shown: total_cross_entropy(model(shown)["logits"], labels),
            images,
            THREATS[0],
            steps=2,
            step_size=0.01,
        )
    assert model.layers[1].training
    assert not model.layers[0].training
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "threat", [ThreatModel("linf", 0.006), ThreatModel("l2", 0.06)], ids=lambda t: t.norm
)
def test_strong_attack_finds_what_the_closed_form_allows(threat, part):
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))
    weight = model.layers[1].weight.detach()
    model.layers[1].bias.data = -0.5 * weight.sum(1)  # grey is undecided
    images = 0.5 + 0.1 * torch.randn(40, 3, 8, 8)
    logits = model(images)["logits"].detach()
    labels = logits.argmax(1)
    apart = weight[labels][:, None] - weight
    dual = apart.abs().sum(-1) if threat.norm == "linf" else apart.norm(dim=-1)
    margins = logits.gather(1, labels[:, None]) - logits - threat.radius * dual
    margins.scatter_(1, labels[:, None], torch.inf)
    robust = (margins.amin(1) > 0).float().mean().item()
    assert 0.2 < robust < 0.8
    shares = survivors(
        model, images, labels, threat, parts=[part], steps=50, queries=600, progress=False
    )
    assert list(shares) == ["clean", part]
    assert shares["clean"] == 1
    # No attack can beat the closed form. Those that climb the margin come within an image of it;
    # the cross-entropy is another aim, and Square searches at random.
    assert shares[part] >= robust - 1e-6
    limit = 0.999 if part in {"apgd-ce", "square"} else robust + 1.01 / 40
    assert shares[part] <= limit


def test_survivors_are_the_worst_case_of_all_parts():
    model, images = convolutional().train(), torch.rand(12, 3, 8, 8)
    labels = model.eval()(images)["logits"].argmax(1)
    labels[0] = (labels[0] + 1) % 3
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    shares = survivors(
        model,
        images,
        labels,
        ThreatModel("linf", 0.05),
        parts=["apgd-ce", "square"],
        steps=5,
        queries=20,
        batch_size=5,
        progress=False,
    )
    assert shares["clean"] == pytest.approx(11 / 12)
    assert shares["clean"] >= shares["apgd-ce"] >= shares["square"]
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("norm", "radius", "message"),
    [("l1", 0.1, "norm='l1' is unknown; known norms: linf, l2"), ("l2", 0, "radius=0 must be")],
)
def test_impossible_threats_are_refused(norm, radius, message):
    with pytest.raises(ValueError, match=message):
        ThreatModel(norm, radius)
