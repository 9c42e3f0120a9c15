"""What a probe or a person says of a model's weights, on its way into parameter groups."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from hf_adamp import AdamP, get_param_groups, probe
from hf_adamp.granularities import read_granularities


def network():
    """A convolution per row, two projections by head, a tied head, norms and biases."""
    model = nn.Module()
    model.conv = nn.Conv2d(2, 6, 3)
    model.norm = nn.BatchNorm2d(6)
    model.query = nn.Linear(6, 8)
    model.key = nn.Linear(6, 4)
    model.embed = nn.Embedding(5, 6)
    model.head = nn.Linear(6, 5)
    model.head.weight = model.embed.weight
    return model


REPORT = {
    "conv.weight": "row",
    "query.weight": ("head", 4),
    "key.weight": ("head", 2),
    "head.weight": None,
}


def declared_of(model, groups):
    """Name → what its group declares, and whether it has decay."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (group["scale_invariant"], bool(group["weight_decay"]))
        for group in groups
        for p in group["params"]
    }


@pytest.mark.parametrize(
    "report",
    [
        REPORT,
        SimpleNamespace(granularities=REPORT),
        json.loads(json.dumps(REPORT)),
        {f"_orig_mod.{name}": value for name, value in REPORT.items()},
    ],
    ids=["mapping", "object", "json", "compiled"],
)
def test_report_makes_a_group_for_each_granularity(report):
    model = network()
    groups = get_param_groups(model, 0.1, scale_invariance=report)
    declared = declared_of(model, groups)
    assert {n: d for n, d in declared.items() if d[1]} == {
        "conv.weight": ("row", True),
        "query.weight": (("head", 4), True),
        "key.weight": (("head", 2), True),
        "embed.weight": (False, True),
    }
    assert {d for d in declared.values() if not d[1]} == {("auto", False)}
    assert len(groups) == 5
    optimizer = AdamP(groups, lr=0.1)
    for param in model.parameters():
        param.grad = torch.randn_like(param)
    optimizer.step()


def test_unnamed_weights_and_vectors_are_left_to_the_test():
    model = network()
    report = {"conv.weight": "row", "conv.bias": "row", "norm.weight": None}
    declared = declared_of(model, get_param_groups(model, 0.1, scale_invariance=report))
    assert {name for name, (value, _) in declared.items() if value != "auto"} == {"conv.weight"}


def test_groups_without_a_report_say_nothing_and_keep_their_order():
    model = network()
    plain = get_param_groups(model, 0.1)
    assert [group.keys() for group in plain] == [{"params", "weight_decay"}] * 2
    empty = get_param_groups(model, 0.1, scale_invariance={})
    for ours, other in zip(plain, empty, strict=True):
        assert list(map(id, ours["params"])) == list(map(id, other["params"]))
        assert other["scale_invariant"] == "auto"


def test_groups_keep_the_order_of_the_model():
    model = network()
    groups = get_param_groups(model, 0.1, scale_invariance=REPORT)
    assert [group["scale_invariant"] for group in groups] == [
        "row", ("head", 4), ("head", 2), False, "auto",
    ]  # fmt: skip
    assert [bool(group["weight_decay"]) for group in groups] == [True] * 4 + [False]


def test_frozen_weights_may_be_named():
    model = network()
    model.conv.requires_grad_(False)
    declared = declared_of(model, get_param_groups(model, 0.1, scale_invariance=REPORT))
    assert "conv.weight" not in declared


@pytest.mark.parametrize(
    ("report", "error", "match"),
    [
        (
            {"conv.wieght": "row", "x": "row", "key.weight": "row"},
            ValueError,
            r'names "conv\.wieght", which Module does not have, did you mean "conv\.weight" '
            r"\(2 of 3 names are unknown\)",
        ),
        ({"conv.weight": "rows"}, ValueError, r"scale_invariance\['conv\.weight'\]='rows' must be"),
        ({"conv.weight": True}, TypeError, r"scale_invariance\['conv\.weight'\]=True must be"),
        (
            {"query.weight": ("head", 3)},
            ValueError,
            r"multiple of 3 rows, but query\.weight of shape \(8, 6\) has 8",
        ),
        (
            {"embed.weight": "row", "head.weight": None},
            ValueError,
            r"declares head\.weight False and, under another name of the same tied weight, 'row'",
        ),
        ("row", TypeError, r"scale_invariance must be a mapping .*, not str"),
        (SimpleNamespace(granularities="row"), TypeError, "must be a mapping"),
    ],
    ids=str,
)
def test_bad_report_is_refused(report, error, match):
    with pytest.raises(error, match=match):
        get_param_groups(network(), 0.1, scale_invariance=report)


def test_tied_weight_may_be_named_twice_alike():
    report = {"embed.weight": "row", "head.weight": "row"}
    groups = get_param_groups(network(), 0.1, scale_invariance=report)
    assert groups[1]["scale_invariant"] == "row"


ENTRIES = [{"name": name, "granularity": value, "rows": 1} for name, value in REPORT.items()]


@pytest.mark.parametrize(
    "content",
    [REPORT, {"granularities": REPORT, "weights": [1]}, {"weights": ENTRIES, "format": 1}],
    ids=["mapping", "report", "entries"],
)
def test_file_of_each_form_is_read(tmp_path, content):
    file = tmp_path / "report.json"
    file.write_text(json.dumps(content))
    expected = {**REPORT, "head.weight": False}
    assert read_granularities(file) == expected


def test_weight_may_be_named_as_a_report_names_its_parts(tmp_path):
    file = tmp_path / "report.json"
    file.write_text('{"weights": ["head", 2], "granularities": "row"}')
    assert read_granularities(file) == {"weights": ("head", 2), "granularities": "row"}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[]", "holds a list; it must hold an object"),
        ("row", "Expecting value"),
        ('{"weights": [{"name": "a"}]}', "lack a `name` or a `granularity`"),
        ('{"a": "rows"}', r"scale_invariance\['a'\]='rows' must be"),
    ],
)
def test_bad_file_is_refused(tmp_path, text, match):
    file = tmp_path / "report.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=match):
        read_granularities(file)


def test_probed_heads_are_projected_head_by_head(tmp_path):
    """Qwen3 has a norm for each head of its queries and keys, and of those there are fewer."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    model = Qwen3ForCausalLM(config)
    tokens = torch.randint(32, (2, 8))
    report = probe(model, {"input_ids": tokens})
    file = tmp_path / "report.json"
    file.write_text(report.to_json())
    assert read_granularities(file) == {
        name: value or False for name, value in report.granularities.items()
    }
    groups = get_param_groups(model, 0.0, scale_invariance=report)
    declared = declared_of(model, groups)
    attention = "model.layers.0.self_attn"
    assert {name for name, (value, _) in declared.items() if value == ("head", 4)} == {
        f"{attention}.q_proj.weight"
    }
    assert declared[f"{attention}.k_proj.weight"][0] == ("head", 2)
    query = model.get_parameter(f"{attention}.q_proj.weight")
    optimizer = AdamP(groups, lr=1e-2)
    model(input_ids=tokens, labels=tokens).loss.backward()
    before = query.detach().clone()
    optimizer.step()
    heads, step = before.view(4, -1), (query.detach() - before).view(4, -1)
    along = (heads * step).sum(1) / heads.norm(dim=1) / step.norm(dim=1)
    assert along.abs().max() < 1e-4
    assert step.norm(dim=1).min() > 0
