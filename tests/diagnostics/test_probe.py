"""The probe on small networks: its verdicts at their edges, its traces, its errors."""

import json
import random
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from hf_adamp import ProbeReport, probe


class RMSNorm(nn.Module):
    """A norm whose eps no attribute names, over groups of features."""

    def __init__(self, groups):
        super().__init__()
        self.groups = groups

    def forward(self, x):
        x = x.unflatten(-1, (self.groups, -1))
        x = x.to(torch.float32)
        return (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)).flatten(-2)


class Residual(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return x + self.block(x)


class FusedQKV(nn.Module):
    """Queries and keys normalised per head, values not, from one weight."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24, bias=False)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).unbind(-3)
        q, k = (nn.functional.normalize(t, dim=-1) for t in (q, k))
        return (q @ k.transpose(-1, -2)).softmax(-1) @ v


class Experts(nn.Module):
    """The second expert gets no token."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x):
        return self.experts[0](x)


class LevelHere(nn.Module):
    """Two rows whose lengths' ratio counts, but not to first order where the weight is now."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 4, dtype=torch.float64))
        self.ratio = self.weight[0].norm().item() / self.weight[1].norm().item()

    def forward(self, x):
        a, b = (row.norm() for row in self.weight)
        return x @ (self.weight.T / torch.stack([a, b])) + (a / b - self.ratio) ** 2


def linear(rows=8, columns=6):
    return nn.Linear(columns, rows, bias=False)


def verdict(model, inputs, name="0.weight"):
    return probe(model, inputs, gradients=2).weights[name]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(linear(), RMSNorm(1)), "tensor"),
        (nn.Sequential(linear(), RMSNorm(4)), ("head", 4)),
        (nn.Sequential(linear(), nn.BatchNorm1d(8)), "row"),
        # Statistics of the batch take a bias out again.
        (nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)), "row"),
        (nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8)), None),
        # A positive factor passes a ReLU, no factor passes a GELU.
        (nn.Sequential(linear(), nn.ReLU(), linear(8, 8), RMSNorm(1)), "tensor"),
        (nn.Sequential(linear(), nn.GELU(), linear(8, 8), RMSNorm(1)), None),
        (nn.Sequential(linear(6), Residual(RMSNorm(1))), None),
        (nn.Sequential(linear(), nn.Softmax(-1)), None),
    ],
)
def test_granularity_follows_from_what_lies_behind_a_weight(model, expected):
    assert verdict(model, torch.randn(16, 6)).granularity == expected


def test_derivative_alone_decides_nothing():
    assert verdict(LevelHere(), torch.randn(5, 4), "weight").granularity == "tensor"


def test_weight_norm_makes_directions_invariant_and_gains_not():
    with pytest.warns(FutureWarning):
        hook = nn.utils.weight_norm(nn.Linear(6, 6))
    model = nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(6, 6)),
        hook,
        parametrizations.weight_norm(nn.Linear(6, 6)),
        parametrizations.weight_norm(nn.Linear(6, 6), dim=None),
    )
    assert probe(model, torch.randn(5, 6), gradients=1).granularities == {
        "0.parametrizations.weight.original": "tensor",
        "1.weight_g": None,
        "1.weight_v": "row",
        "2.parametrizations.weight.original0": None,
        "2.parametrizations.weight.original1": "row",
        "3.parametrizations.weight.original1": "tensor",
    }


def test_recurrent_weights_are_probed():
    weights = probe(nn.LSTM(4, 6), torch.randn(5, 2, 4), gradients=1).weights
    assert [w.groups for w in weights.values()] == [None, None]
    assert all(w.effect > 0 for w in weights.values())


def test_tied_weight_is_one_weight():
    first, last = linear(6, 6), linear(6, 6)
    last.weight = first.weight
    # Its first use is normalised, its second is not.
    report = probe(nn.Sequential(first, RMSNorm(1), last), torch.randn(5, 6))
    assert report.granularities == {"0.weight": None}


def test_part_of_a_fused_weight_is_reported():
    weight = verdict(FusedQKV(), torch.randn(3, 5, 8), "qkv.weight")
    # Two heads of queries and two of keys, then values, which have no norm.
    assert weight.granularity == ("rows", (4, 4, 4, 4, -8))
    assert weight.partial == (6, pytest.approx(4 / 6))


def test_weight_without_influence_is_told_from_an_invariant_one():
    weights = probe(Experts(), torch.randn(5, 4), gradients=1).weights
    idle = weights["experts.1.weight"]
    assert (idle.effect, idle.granularity, idle.cosine) == (0.0, None, None)
    assert weights["experts.0.weight"].effect > 0


def test_unused_rows_do_not_count():
    model = nn.Sequential(nn.Embedding(50, 8), RMSNorm(1))
    assert verdict(model, torch.tensor([[1, 2, 3]])).granularity == "row"


@pytest.mark.parametrize("zero", ["weight", "gain"])
def test_values_of_the_first_step_do_not_decide(zero):
    model = nn.Sequential(linear(), nn.BatchNorm1d(8), linear(8, 8))
    with torch.no_grad():
        (model[0] if zero == "weight" else model[1]).weight.zero_()
    report = probe(model, torch.randn(16, 6))
    assert report.granularities == {"0.weight": "row", "2.weight": None}


def test_layer_scale_near_zero_hides_nothing():
    model = nn.Sequential(nn.BatchNorm1d(6), Residual(nn.Sequential(linear(6), nn.BatchNorm1d(6))))
    with torch.no_grad():
        model[1].block[1].weight.fill_(1e-6)
    assert verdict(model, torch.randn(16, 6), "1.block.0.weight").granularity == "row"


def test_batch_norm_frozen_within_training_stays_frozen():
    model = nn.Sequential(linear(), nn.BatchNorm1d(8))
    model[1].eval()
    assert verdict(model, torch.randn(16, 6)).granularity is None
    model.eval()
    assert verdict(model, torch.randn(16, 6)).granularity == "row"


def test_dropout_is_off():
    model = nn.Sequential(nn.Dropout(0.5), linear(), RMSNorm(1), nn.Dropout(0.5))
    assert verdict(model, torch.randn(16, 6), "1.weight").granularity == "tensor"


def test_frozen_weights_are_left_out():
    model = nn.Sequential(linear(), linear(8, 8))
    model[0].requires_grad_(False)
    assert list(probe(model, torch.randn(4, 6)).weights) == ["1.weight"]


def test_test_of_adamp_is_that_of_the_optimizer():
    model = nn.Sequential(linear(64, 64), nn.BatchNorm1d(64), linear(4, 64))
    report = probe(model, torch.randn(32, 64), gradients=40)
    first, last = report.weights["0.weight"], report.weights["2.weight"]
    assert (first.channel, first.caught, first.misfires) == (1.0, 1.0, 0.0)
    # |cos|·√dim of a random direction is below 0.1 in 8 % of all draws, in four rows at once never.
    assert 0 < last.layer < 0.3
    assert (last.channel, last.caught, last.misfires) == (0.0, None, last.layer)
    everything = probe(model, torch.randn(32, 64), gradients=5, delta=1e9)
    assert everything.weights["2.weight"].channel == 1.0


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(linear(), nn.BatchNorm1d(8), nn.Dropout(0), linear(3, 8))
        # The probe would move constants.
        for parameter in self.body[1].parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)

    def forward(self, x, labels):
        logits = self.body(x)
        return {"logits": logits, "loss": nn.functional.cross_entropy(logits, labels)}


def test_loss_gives_one_gradient_a_batch():
    batches = [{"x": torch.randn(9, 6), "labels": torch.randint(3, (9,))} for _ in range(3)]
    model = Classifier()
    report = probe(model, batches, gradients=8)
    assert report.gradients == 3
    model(**batches[0])["loss"].backward()
    g, w = model.body[3].weight.grad, model.body[3].weight
    one = probe(model, batches[0], gradients=1).weights["body.3.weight"]
    cosine = nn.functional.cosine_similarity(g.flatten(), w.detach().flatten(), dim=0)
    assert one.cosine == pytest.approx(abs(float(cosine)), rel=1e-4)


def snapshot(model):
    return {
        "values": {k: (v.data_ptr(), v.dtype, v.clone()) for k, v in model.state_dict().items()},
        "identity": [id(p) for p in model.parameters()],
        "grads": [
            (id(p.grad), None if p.grad is None else p.grad.clone()) for p in model.parameters()
        ],
        "requires": [p.requires_grad for p in model.parameters()],
        "training": [m.training for m in model.modules()],
        "attributes": [sorted(m.__dict__) for m in model.modules()],
        "noise": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()),
        "default": torch.get_default_dtype(),
    }


def assert_same(before, after):
    for key in ("identity", "requires", "training", "attributes", "default"):
        assert before[key] == after[key], key
    assert before["noise"][1] == after["noise"][1]
    torch.testing.assert_close(after["noise"][0], before["noise"][0], rtol=0, atol=0)
    assert (before["noise"][2] == after["noise"][2]).all()
    for name, (pointer, dtype, value) in before["values"].items():
        assert after["values"][name][:2] == (pointer, dtype), name
        torch.testing.assert_close(after["values"][name][2], value, rtol=0, atol=0)
    for (pointer, grad), (same, now) in zip(before["grads"], after["grads"], strict=True):
        assert pointer == same
        assert grad is None or torch.equal(grad, now)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("fails", [False, True])
def test_model_is_left_as_it_was_found(dtype, fails):
    with pytest.warns(FutureWarning):
        hook = nn.utils.weight_norm(linear(3, 8))
    model = nn.Sequential(linear(), nn.BatchNorm1d(8), nn.Dropout(0.1), hook).to(dtype)
    model[2].eval()
    model(torch.randn(9, 6, dtype=dtype)).sum().backward()
    model[0].weight.requires_grad_(False)
    fired = []
    model[3].weight_v.register_post_accumulate_grad_hook(lambda p: fired.append(1))
    weight = model[3].weight
    inputs = torch.randn(9, 7 if fails else 6)
    # Not what an earlier probe would have left.
    random.seed(str(dtype))
    np.random.seed(3)
    before = snapshot(model)
    with pytest.raises(RuntimeError) if fails else nullcontext():
        probe(model, inputs, gradients=2)
    assert_same(before, snapshot(model))
    assert model[3].weight is weight
    assert fired == []
    model(torch.randn(9, 6, dtype=dtype))


class Caching(nn.Module):
    """Keeps what it made of its weight until it is trained again, as LeViT does."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.cache = {}

    def train(self, mode=True):
        if mode:
            self.cache = {}
        return super().train(mode)

    def forward(self, x):
        if self.training:
            return x @ self.weight
        return x @ self.cache.setdefault("weight", self.weight * 1)


@pytest.mark.parametrize("used", [False, True])
def test_what_a_module_keeps_is_neither_believed_nor_changed(used):
    model = nn.Sequential(Caching(), RMSNorm(1)).eval()
    inputs = torch.randn(5, 6)
    if used:
        model(inputs)
    cache = model[0].cache
    kept = dict(cache)
    assert verdict(model, inputs).granularity == "tensor"
    assert model[0].cache is cache
    assert cache == kept


def test_lstm_still_uses_its_own_weights():
    model = nn.LSTM(4, 6)
    probe(model, torch.randn(5, 2, 4), gradients=1)
    assert all(a is b for a, b in zip(model._flat_weights, model.parameters(), strict=True))
    assert model(torch.randn(5, 2, 4))[0].dtype == torch.float32


def test_result_repeats():
    model, inputs = nn.Sequential(linear(), RMSNorm(4)), torch.randn(5, 6)
    assert probe(model, inputs).weights == probe(model, inputs).weights


def test_report_survives_json():
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), linear(8, 8), RMSNorm(4), linear(4, 8))
    report = probe(model, torch.randn(5, 6), gradients=2)
    text = report.to_json()
    assert ProbeReport.from_json(text) == report
    assert ProbeReport.from_json(text).granularities == {
        "0.weight": None,
        "2.weight": ("head", 4),
        "4.weight": None,
    }
    assert [w["granularity"] for w in json.loads(text)["weights"]] == [None, ["head", 4], None]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99, "weights": []}'])
def test_text_that_is_no_report_is_refused(text):
    with pytest.raises(ValueError, match="probe"):
        ProbeReport.from_json(text)


def test_table_folds_equal_layers():
    layers = [nn.Sequential(linear(8, 8), RMSNorm(2)) for _ in range(12)]
    report = probe(nn.Sequential(*layers, linear(2, 8)), torch.randn(5, 8), gradients=1)
    printed = report.to_text()
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert any(line.startswith("*.*.weight 12 Linear head (2)") for line in lines)
    assert any(line.startswith("12.weight 1 Linear –") for line in lines)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(linear(64), nn.BatchNorm1d(64)), "AdamP is worth trying: 1 of 1 weights"),
        (nn.Sequential(linear(64), nn.GELU(), linear(2, 64)), "AdamP is not worth trying"),
        (
            nn.Sequential(linear(6), nn.BatchNorm1d(6), linear(64)),
            "expect little from AdamP: only 1 of 2 weights (9%",
        ),
    ],
)
def test_summary_says_whether_to_try(model, words):
    summary = probe(model, torch.randn(16, 6), gradients=2).summary
    assert words in summary
    assert summary.count(".") == 1


def test_summary_tells_that_the_test_does_not_find_heads():
    model = nn.Sequential(linear(), RMSNorm(2))
    # A delta that lets every row pass makes the test choose rows, which is not the granularity.
    summary = probe(model, torch.randn(16, 6), gradients=2, delta=1e9).summary
    assert "with declared weights only" in summary
    assert "finds 0% of these" in summary


def test_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    report = probe(nn.Sequential(linear(), nn.BatchNorm1d(8)), torch.randn(16, 6), gradients=1)
    path = report.plot(tmp_path / "new" / "probe.png")
    assert path.read_bytes().startswith(b"\x89PNG")


class Count(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 2))

    def forward(self, x):
        return x.argmax()


class Strange(nn.Module):
    """Looks like a model of Transformers, and takes no tokens."""

    main_input_name = "input_ids"

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=8)
        self.body = linear()

    def forward(self, input_ids):
        return self.body(input_ids.float())


def test_made_up_inputs_that_do_not_suit_are_named():
    message = r"Strange does not run on .* \(input_ids: \(2, 16\)\): RuntimeError.*pass inputs="
    with pytest.raises(ValueError, match=message):
        probe(Strange())


BAD = {
    "no module": ("model", {}, TypeError, "must be a torch.nn.Module, not str"),
    "no inputs": (linear(), {}, ValueError, "is not a Transformers model.*pass inputs="),
    "wrong inputs": (linear(), {"inputs": 3}, TypeError, "inputs holds int"),
    "empty list": (linear(), {"inputs": []}, TypeError, "inputs holds no batch"),
    "gradients": (linear(), {"inputs": (), "gradients": 0}, ValueError, "gradients=0 must be"),
    "delta": (linear(), {"inputs": (), "delta": -1.0}, ValueError, "delta=-1.0 must be"),
    "no weight": (nn.LayerNorm(4), {"inputs": ()}, ValueError, "no trainable floating-point"),
    "meta": (linear().to("meta"), {"inputs": ()}, RuntimeError, "weight is on the meta device"),
    "lazy": (nn.LazyLinear(4), {"inputs": ()}, RuntimeError, "weight has no shape yet"),
    "no output": (Count(), {"inputs": torch.ones(3)}, ValueError, "no floating-point tensor"),
    "not finite": (
        linear(),
        {"inputs": torch.full((2, 6), torch.inf)},
        ValueError,
        "output is not finite",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused(case):
    model, arguments, error, message = BAD[case]
    with pytest.raises(error, match=message):
        probe(model, **arguments)
