"""The probe on tiny models of Transformers: the answers follow from each architecture."""

import re

import pytest
import torch

from hf_adamp import probe
from hf_adamp.diagnostics.probe import scaling
from tests.tables.decay_rules import ARCHITECTURES, GATED, build

OPTIONS = {name: (model_type, options) for name, model_type, options in ARCHITECTURES}
HEADS = {**GATED, "num_attention_heads": 4, "num_key_value_heads": 2}
OPTIONS |= {
    "Qwen3": ("qwen3", HEADS),
    "Gemma3": ("gemma3_text", HEADS),
    "OLMo2": ("olmo2", {**HEADS, "pad_token_id": 0}),
    # Halved five times, 64 pixels leave four; of one pixel a norm by batch leaves nothing.
    "MobileNetV2": ("mobilenet_v2", {"depth_multiplier": 0.25, "image_size": 64}),
}

# A norm of v's and up's output is a norm of the whole output, one factor for all: "tensor". Behind
# the gate's activation, and behind a residual sum, no factor comes out again.
POST_NORM = {
    r"v_proj\.weight": "tensor",
    r"o_proj\.weight": "tensor",
    r"up_proj\.weight": "tensor",
    r"down_proj\.weight": "tensor",
}

# Weights by the end of their names; all others are not invariant.
EXPECTED = {
    # BatchNorm behind every convolution, depthwise ones too: each channel has its own statistics.
    "ResNet": {r"convolution\.weight": "row"},
    "RegNet": {r"convolution\.weight": "row"},
    "MobileNetV2": {r"convolution\.weight": "row"},
    # A group norm with a group per channel; torch's weight_norm over dim=2, so across rows.
    "Wav2Vec2": {
        r"conv_layers\.0\.conv\.weight": "row",
        r"parametrizations\.weight\.original1": "tensor",
    },
    # One norm per head of queries and keys.
    "Qwen3": {r"q_proj\.weight": ("head", 4), r"k_proj\.weight": ("head", 2)},
    # The same, and a norm behind attention and MLP, before the residual sum.
    "Gemma3": {r"q_proj\.weight": ("head", 4), r"k_proj\.weight": ("head", 2), **POST_NORM},
    # One norm over all heads of queries, one over all heads of keys.
    "OLMo2": {r"q_proj\.weight": "tensor", r"k_proj\.weight": "tensor", **POST_NORM},
    # Pre-norm and post-norm blocks: a residual lies between every weight and the next norm; the
    # layer norms of ConvNeXt and Wav2Vec2 see a bias too.
    "BERT": {},
    "GPT-2": {},
    "Llama": {},
    "T5": {},
    "ViT": {},
    "ConvNeXtV2": {},
}


def inputs_for(name, model):
    tokens = torch.randint(1, 64, (2, 12))
    if name == "T5":
        return {"input_ids": tokens, "decoder_input_ids": tokens.flip(1)}
    if name == "Wav2Vec2":
        return {"input_values": torch.randn(2, 400)}
    if model.main_input_name == "input_ids":
        return {"input_ids": tokens}
    size = getattr(model.config, "image_size", None) or 64
    return {"pixel_values": torch.randn(4, 3, size, size)}


@pytest.mark.parametrize("name", EXPECTED)
def test_probe_finds_what_the_architecture_implies(name):
    torch.manual_seed(0)
    model = build(*OPTIONS[name])
    report = probe(model, inputs_for(name, model), gradients=2)
    found = report.granularities
    patterns = EXPECTED[name]
    assert set(found) == {n for n, p in model.named_parameters() if p.ndim > 1}
    for pattern in patterns:
        assert any(re.search(f"{pattern}$", weight) for weight in found), pattern
    wrong = {
        weight: granularity
        for weight, granularity in found.items()
        if granularity != next((g for p, g in patterns.items() if re.search(f"{p}$", weight)), None)
    }
    assert wrong == {}
    for weight in report.weights.values():
        assert weight.effect > 0, f"{weight.name} should have an effect"
        if weight.groups is None:
            assert weight.change > 1e-3 * weight.effect, weight.name


@pytest.mark.parametrize("limit", [1e-10, 1e-3])
@pytest.mark.parametrize("name", ["ResNet", "Wav2Vec2", "Gemma3", "OLMo2"])
def test_answers_do_not_hang_on_the_limit(name, limit, monkeypatch):
    torch.manual_seed(0)
    model = build(*OPTIONS[name])
    inputs = inputs_for(name, model)
    expected = probe(model, inputs, gradients=1).granularities
    monkeypatch.setattr(scaling, "_LIMIT", limit)
    assert probe(model, inputs, gradients=1).granularities == expected


def test_invariance_is_exact_but_for_eps():
    torch.manual_seed(0)
    model = build(*OPTIONS["Qwen3"])
    inputs = inputs_for("Qwen3", model)
    exactness = {}
    for eps in (1e-6, 1e-12):
        for module in model.modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon = eps
        weight = probe(model, inputs, gradients=2).weights["layers.0.self_attn.q_proj.weight"]
        exactness[eps] = weight.change, weight.cosine
    assert 1e-8 < exactness[1e-6][0] < 1e-2
    for loose, tight in zip(exactness[1e-6], exactness[1e-12], strict=True):
        assert tight == pytest.approx(1e-6 * loose, rel=0.1)


def test_layer_norm_behind_a_convolution_is_invariant_with_the_bias_only():
    torch.manual_seed(0)
    model = build(*OPTIONS["ConvNeXtV2"])
    # Freshly initialised, all biases are 0, and the convolutions look invariant by themselves.
    assert model.embeddings.patch_embeddings.bias.abs().max() == 0
    weights = probe(model, inputs_for("ConvNeXtV2", model), gradients=1).weights
    convolution = weights["encoder.stages.0.layers.0.dwconv.weight"]
    assert (convolution.groups, convolution.with_bias) == (None, 1)
