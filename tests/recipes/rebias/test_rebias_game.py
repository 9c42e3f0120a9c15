"""The game: whose turn it is, what it is held against, and a round played by hand."""

import copy

import pytest
import torch
from torch.nn import functional

from recipes.rebias.configuration_rebias import StackedConvConfig
from recipes.rebias.game import Game, Player, extract
from recipes.rebias.hsic import hsic
from recipes.rebias.modeling_rebias import StackedConvForImageClassification


class Recorder(torch.optim.SGD):
    """SGD that also notes whose turn it was, and both networks' weights before it."""

    def __init__(self, name, networks, turns):
        super().__init__(networks[name].parameters(), lr=0.1)
        self.name, self.networks, self.turns = name, networks, turns

    def step(self, closure=None):
        self.turns.append((self.name, snapshot(self.networks)))
        return super().step(closure)


def snapshot(networks):
    return {name: [p.detach().clone() for p in net.parameters()] for name, net in networks.items()}


def networks():
    return {
        "f": StackedConvForImageClassification(StackedConvConfig(kernel_size=3, channels=(4, 6))),
        "g": StackedConvForImageClassification(StackedConvConfig(kernel_size=1, channels=(4, 6))),
    }


def batch():
    return torch.randn(8, 3, 6, 6), torch.arange(8) % 2


def test_game_takes_turns_g_first_and_only_one_moves():
    nets, turns = networks(), []
    game = Game(*(Player(nets[name], Recorder(name, nets, turns)) for name in ("f", "g")))
    for _ in range(3):
        game.step(*batch())
    assert [name for name, _ in turns] == ["g", "f"] * 3
    after = [*(weights for _, weights in turns[1:]), snapshot(nets)]
    for (mover, before), later in zip(turns, after, strict=True):
        still = "f" if mover == "g" else "g"
        assert all(map(torch.equal, before[still], later[still]))
        assert not all(map(torch.equal, before[mover], later[mover]))


def test_game_plays_a_round_as_by_hand():
    nets = networks()
    by_hand = copy.deepcopy(nets)
    pixels, labels = batch()
    players = {
        name: Player(net, torch.optim.SGD(net.parameters(), lr=0.1), weight=weight, sigma=sigma)
        for (name, net), weight, sigma in zip(nets.items(), (0.7, 1.3), (0.8, 0.5), strict=True)
    }
    Game(players["f"], players["g"]).step(pixels, labels)

    def turn(name, other, sign, weight):
        """As published: both networks look anew, and only one has an optimizer."""
        logits, features = extract(by_hand[name], pixels)
        _, others = extract(by_hand[other], pixels)
        sigmas = {"f": 0.8, "g": 0.5}
        loss = functional.cross_entropy(logits, labels)
        loss = loss + sign * weight * hsic(features, others, sigmas[name], sigmas[other])
        parameters = list(by_hand[name].parameters())
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= 0.1 * gradient

    turn("g", "f", -1, 1.3)
    turn("f", "g", +1, 0.7)
    for name in ("f", "g"):
        pairs = zip(nets[name].parameters(), by_hand[name].parameters(), strict=True)
        assert all(torch.allclose(ours, theirs, atol=1e-6) for ours, theirs in pairs)


def test_game_without_weights_is_two_separate_trainings():
    nets = networks()
    alone = copy.deepcopy(nets["f"])
    pixels, labels = batch()
    players = [
        Player(nets[name], torch.optim.SGD(nets[name].parameters(), lr=0.1), weight=0.0)
        for name in ("f", "g")
    ]
    losses = Game(*players).step(pixels, labels)
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1)
    loss = alone(pixels, labels=labels).loss
    loss.backward()
    optimizer.step()
    assert losses["f_loss"].item() == pytest.approx(loss.item(), rel=1e-6)
    pairs = zip(nets["f"].parameters(), alone.parameters(), strict=True)
    assert all(torch.allclose(ours, theirs, atol=1e-7) for ours, theirs in pairs)


def test_game_makes_g_like_f_and_f_unlike_g():
    """Each player's turn moves the dependence its way, once it is all that counts."""
    pixels, labels = torch.randn(32, 3, 6, 6), torch.zeros(32, dtype=torch.long)
    for mover, sign in (("g", 1), ("f", -1)):
        torch.manual_seed(3)
        nets = networks()
        players = {
            name: Player(
                net, torch.optim.SGD(net.parameters(), lr=0.05 * (name == mover)), weight=1000.0
            )
            for name, net in nets.items()
        }
        game = Game(players["f"], players["g"])
        values = [game.step(pixels, labels)["hsic"].item() for _ in range(6)]
        assert sign * (values[-1] - values[0]) > 0
