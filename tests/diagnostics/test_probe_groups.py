"""Groups of rows of unequal sizes and stacks of experts: found, printed, and taken by AdamP."""

import json

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from hf_adamp import AdamP, ProbeReport, get_param_groups, probe
from hf_adamp.diagnostics.models import inspect_model
from hf_adamp.granularities import read_granularities
from tests.diagnostics.tiny_models import JAMBA, LATENT
from tests.tables.decay_rules import GATED
from tests.versions import needs_a_stack_of_experts


def rms(x):
    return x / x.square().mean(-1, keepdim=True).sqrt()


class Fused(nn.Module):
    """One projection of several parts; each is normalized, or is not (negative)."""

    def __init__(self, *sizes):
        super().__init__()
        self.sizes = sizes
        self.proj = nn.Linear(5, sum(map(abs, sizes)), bias=False)

    def forward(self, x):
        parts = self.proj(x).split([abs(size) for size in self.sizes], dim=-1)
        return torch.cat(
            [rms(p) if size > 0 else p for p, size in zip(parts, self.sizes, strict=True)], dim=-1
        )


class Stack(nn.Module):
    """A stack of experts, every output of every expert normalized over the batch, or each expert.

    Every expert sees every token.
    """

    def __init__(self, order, norm):
        super().__init__()
        shape = (3, 4, 6) if order == "out_in" else (3, 6, 4)
        self.order, self.norm = order, norm
        self.experts = nn.Parameter(torch.randn(shape))

    def forward(self, x):
        weight = self.experts.transpose(1, 2) if self.order == "out_in" else self.experts
        y = torch.einsum("bi,eio->beo", x, weight)
        if self.norm == "output":
            return (y - y.mean(0)) / y.std(0)
        return rms(y) if self.norm == "expert" else rms(y.sum(1))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("sizes", "expected", "words"),
    [
        ((12, 4), ("rows", (12, 4)), "rows (12 + 4)"),
        # Also where the halves would be equal groups that are invariant.
        ((8, 4, 4), ("rows", (8, 4, 4)), "rows (8 + 2×4)"),
        ((3, 5, 2, 6), ("rows", (3, 5, 2, 6)), "rows (3 + 5 + 2 + 6)"),
        ((12, -4), ("rows", (12, -4)), "rows (12 − 4)"),
        ((-4, 12), ("rows", (-4, 12)), "rows (− 4 + 12)"),
        ((5, -3, 4), ("rows", (5, -3, 4)), "rows (5 − 3 + 4)"),
        ((4, 4, -8), ("rows", (4, 4, -8)), "rows (2×4 − 8)"),
        ((8, 8), ("head", 2), "head (2)"),
        ((-8, -8), None, "–"),
    ],
)
def test_groups_of_unequal_rows_are_found_and_taken(sizes, expected, words):
    model = nn.Sequential(Fused(*sizes))
    x = torch.randn(9, 5)
    report = probe(model, x, gradients=2)
    weight = report.weights["0.proj.weight"]
    assert weight.granularity == expected
    assert words in report.to_text()
    assert weight.invariant_numel == 5 * sum(size for size in sizes if size > 0)
    assert ProbeReport.from_json(report.to_json()) == report
    optimizer = AdamP(get_param_groups(model, 0.0, scale_invariance=report), lr=0.1)
    out = model(x)
    (out * torch.randn(out.shape)).sum().backward()
    before = model[0].proj.weight.detach().clone()
    optimizer.step()
    moved = model[0].proj.weight.detach() - before
    # Projected where it is invariant, and nowhere else.
    for size, w, step in zip(
        sizes, before.split([*map(abs, sizes)]), moved.split([*map(abs, sizes)]), strict=True
    ):
        along = nn.functional.cosine_similarity(w.flatten(), step.flatten(), dim=0).abs()
        assert (along < 1e-5) == (size > 0)


def test_file_of_a_report_declares_unequal_groups(tmp_path):
    report = probe(Fused(12, -4), torch.randn(9, 5), gradients=1)
    file = tmp_path / "report.json"
    file.write_text(report.to_json())
    assert json.loads(file.read_text())["weights"][0]["granularity"] == ["rows", [12, -4]]
    assert read_granularities(file) == {"proj.weight": ("rows", (12, -4))}


def test_unused_rows_do_not_cut_groups():
    class Masked(Fused):
        def forward(self, x):
            mask = torch.ones(16).index_fill(0, torch.tensor([3, 13]), 0.0)
            parts = (self.proj(x) * mask).split([12, 4], dim=-1)
            return torch.cat([rms(part) for part in parts], dim=-1)

    weight = probe(Masked(12, 4), torch.randn(9, 5), gradients=1).weights["proj.weight"]
    assert weight.granularity == ("rows", (12, 4))


@pytest.mark.parametrize("order", ["out_in", "in_out"])
@pytest.mark.parametrize(
    ("norm", "granularity"), [("output", "experts"), ("expert", "row"), ("sum", "tensor")]
)
def test_granularity_of_a_stack_of_experts(order, norm, granularity):
    model = Stack(order, norm)
    x = torch.randn(9, 6)
    report = probe(model, x, gradients=2)
    expected = ("experts", order) if granularity == "experts" else granularity
    assert report.granularities == {"experts": expected}
    assert ProbeReport.from_json(report.to_json()) == report
    get_param_groups(model, 0.1, scale_invariance=report)
    optimizer = AdamP(get_param_groups(model, 0.0, scale_invariance=report), lr=0.1)
    out = model(x)
    (out * torch.randn(out.shape)).sum().backward()
    before = model.experts.detach().clone()
    optimizer.step()
    step = model.experts.detach() - before
    dims = {"experts": 2 if order == "out_in" else 1, "row": (1, 2), "tensor": (0, 1, 2)}
    along = (before * step).sum(dims[granularity]).abs()
    assert (along < 1e-5 * before.norm() * step.norm()).all()
    if granularity == "experts":
        assert f"experts ({order})" in report.to_text()


def test_experts_without_a_token_do_not_count():
    class Idle(Stack):
        def forward(self, x):
            return super().forward(x)[:, :2]

    report = probe(Idle("in_out", "output"), torch.randn(9, 6), gradients=1)
    assert report.granularities == {"experts": ("experts", "in_out")}


@pytest.mark.parametrize(
    ("model_type", "options", "expected"),
    [
        # The latent of keys and values has a norm, the part with the rotary positions has none.
        ("deepseek_v3", LATENT, {"kv_a_proj_with_mqa": ("rows", (12, -4)), "q_a_proj": "tensor"}),
        # Norms of the step size, of B and of C.
        ("jamba", JAMBA, {"x_proj": ("rows", (6, 4, 4))}),
    ],
)
def test_fused_norms_of_transformers_are_found(model_type, options, expected):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **options))
    report = probe(model, {"input_ids": torch.randint(1, 60, (2, 12))}, gradients=1)
    found = {name.split(".")[-2]: value for name, value in report.granularities.items()}
    assert {name: found[name] for name in expected} == expected
    get_param_groups(model, 0.1, scale_invariance=report)


STACKS = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "llama4_text": {"num_local_experts": 2, "intermediate_size_mlp": 16, "moe_layers": [0]},
}
UNFUSED_ONCE = {"mixtral", "qwen3_moe"}


@pytest.mark.parametrize(
    "model_type",
    [
        pytest.param(
            model_type, marks=needs_a_stack_of_experts if model_type in UNFUSED_ONCE else ()
        )
        for model_type in STACKS
    ],
)
def test_fused_experts_behind_a_residual_sum_are_not_invariant(model_type, tmp_path):
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}
    config = AutoConfig.for_model(model_type, **{**GATED, **heads, **STACKS[model_type]})
    config.save_pretrained(tmp_path)
    weights = inspect_model(str(tmp_path), gradients=1).weights
    stacks = {name: w for name, w in weights.items() if len(w.shape) == 3}
    assert len(stacks) == 2
    for weight in stacks.values():
        assert weight.effect > 0
        assert weight.granularity is None
