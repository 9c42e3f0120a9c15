"""Models that are hard to run: no scalar loss, no evaluation, tiny weights, unusual inputs."""

import re

import pytest
import torch
import transformers
from torch import nn

from hf_adamp import probe
from hf_adamp.__main__ import main
from hf_adamp.diagnostics import models
from hf_adamp.diagnostics.models import inspect_model
from hf_adamp.diagnostics.probe import dummy_inputs
from tests.diagnostics.test_probe import RMSNorm, linear
from tests.diagnostics.tiny_models import CANINE
from tests.tables.decay_rules import VISION, WIDE


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Losses(nn.Module):
    """Returns a loss of its own for each sample, as DAC does."""

    def __init__(self, loss):
        super().__init__()
        self.body = nn.Sequential(linear(), RMSNorm(1), linear(3, 8))
        self.loss = loss

    def forward(self, x):
        y = self.body(x)
        return {"logits": y, "loss": self.loss(y)}


@pytest.mark.parametrize(
    ("loss", "gradients"),
    [
        (lambda y: y.square().mean(1), 1),
        (lambda y: y.square(), 1),
        (lambda y: y.square().sum().reshape(1), 1),
        # Not a loss that has a gradient: readings of the result take its place.
        (lambda y: torch.zeros(()), 4),
        (lambda y: 0.0, 4),
        (lambda y: None, 4),
    ],
)
def test_loss_need_not_be_a_number(loss, gradients):
    report = probe(Losses(loss), torch.randn(9, 6), gradients=4)
    assert report.gradients == gradients
    assert report.granularities == {"body.0.weight": "tensor", "body.2.weight": None}


class Particular(nn.Module):
    """Trains, and refuses to be evaluated with labels: its cache does not go with them."""

    def __init__(self, asks):
        super().__init__()
        self.body = nn.Sequential(linear(), RMSNorm(1), nn.Dropout(0.5), linear(3, 8))
        self.asks = asks

    def forward(self, x, labels=None, use_cache=True):
        cached = use_cache and not self.training
        if labels is not None and (cached if self.asks == "cache" else not self.training):
            raise ValueError("no cache with labels")
        logits = self.body(x)
        return {"logits": logits, "loss": nn.functional.cross_entropy(logits, labels)}


@pytest.mark.parametrize("asks", ["cache", "training"])
@pytest.mark.parametrize("training", [False, True])
def test_model_that_only_trains_is_probed_as_in_training(asks, training):
    model = Particular(asks).train(training)
    batch = {"x": torch.randn(9, 6), "labels": torch.randint(3, (9,))}
    report = probe(model, batch, gradients=2)
    assert report.granularities == {"body.0.weight": "tensor", "body.3.weight": None}
    assert report.gradients == 1
    assert {m.training for m in model.modules()} == {training}


def test_error_of_a_model_that_runs_in_no_way_is_its_own():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        probe(Particular("cache"), {"x": torch.randn(9, 7), "labels": torch.randint(3, (9,))})


def shrunk(model, size):
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=size)
    return model


def deep(depth=6):
    """Without a norm between, what is left of a signal is soon nothing."""
    layers = [layer for _ in range(depth) for layer in (linear(8, 8), nn.ReLU())]
    return nn.Sequential(linear(8), *layers, RMSNorm(1), linear(3, 8))


@pytest.mark.parametrize("size", [1e-10, 1e-30])
def test_weights_too_small_to_measure_are_made_larger(size):
    x = torch.randn(9, 6)
    usual = probe(deep(), x, gradients=1)
    small = probe(shrunk(deep(), size), x, gradients=1)
    assert small.granularities == usual.granularities
    assert set(usual.granularities.values()) == {"tensor", None}
    assert all(weight.effect > 1e-3 for weight in small.weights.values())
    (note,) = small.notes
    assert note.startswith("8 weights (0.weight, …) are initialised too small")
    assert "initialised too small" in str(small).replace("\n", " ")
    assert usual.notes == ()


def test_weights_that_are_small_but_measurable_stay_as_they_are():
    report = probe(shrunk(deep(1), 1e-3), torch.randn(9, 6), gradients=1)
    assert report.notes == ()
    assert report.granularities["0.weight"] == "tensor"


def test_weight_that_is_zero_but_for_an_element_is_meant_so():
    model = nn.Sequential(linear(8, 6), linear(8, 8), RMSNorm(1))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[0, 0] = 1e-12
    report = probe(model, torch.randn(9, 6), gradients=1)
    assert not any("initialised too small" in note for note in report.notes)


def test_values_that_eps_swallows_are_told():
    """Inputs of 1e-12 in front of a norm: what it computes is a matter of its eps."""
    model = nn.Sequential(linear(8, 6), RMSNorm(1))
    report = probe(model, 1e-12 * torch.randn(9, 6), gradients=1)
    assert any(note.startswith("It cannot be told for certain") for note in report.notes)
    assert report.summary.startswith("it cannot be told for certain, but ")
    assert not probe(model, torch.randn(9, 6), gradients=1).notes


def test_output_that_depends_on_nothing_tells_nothing():
    class Constant(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 0 + 1

    report = probe(Constant(6, 8), torch.randn(9, 6), gradients=1)
    assert report.summary.startswith("nothing can be told: no weight has an effect on the output")
    assert report.granularities == {"weight": None}


TEXT = {**WIDE, "projection_dim": 8, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
QFORMER = {**WIDE, "encoder_hidden_size": 16, "use_qformer_text_input": True}
UNUSUAL = {
    "CLAP": (
        "clap",
        {
            "text_config": TEXT,
            "audio_config": {
                **{"spec_size": 32, "num_mel_bins": 8, "patch_size": 4, "patch_stride": [4, 4]},
                **{"patch_embeds_hidden_size": 8, "hidden_size": 16, "window_size": 2},
                **{"depths": [1, 1], "num_attention_heads": [1, 1], "projection_dim": 8},
            },
            "projection_dim": 8,
        },
        {"input_ids", "input_features"},
    ),
    "Perceiver": (
        "perceiver",
        {
            **{"vocab_size": 64, "max_position_embeddings": 24, "d_model": 16, "d_latents": 16},
            **{"num_latents": 4, "num_blocks": 1, "num_self_attends_per_block": 1},
            **{"num_self_attention_heads": 2, "num_cross_attention_heads": 2},
            **{"qk_channels": 16, "v_channels": 16},
        },
        {"inputs", "labels"},
    ),
    # The size of images is in a config within the config, and is not to be chosen.
    "BLIP-2": (
        "blip-2",
        {
            "vision_config": {**VISION, "image_size": 24, "patch_size": 8},
            "qformer_config": QFORMER,
            "text_config": {"model_type": "opt", **WIDE, "ffn_dim": 16, "word_embed_proj_dim": 16},
            "num_query_tokens": 4,
            "image_text_hidden_size": 8,
        },
        {"pixel_values", "input_ids"},
    ),
    "VideoMAE": (
        "videomae",
        {**VISION, "num_frames": 4, "tubelet_size": 2, "image_size": 16, "patch_size": 8},
        {"pixel_values"},
    ),
    "BROS": ("bros", {**WIDE, "hidden_size": 64, "bbox_scale": 1.0}, {"input_ids", "bbox"}),
    "CANINE": ("canine", CANINE, {"input_ids"}),
    # Its loss takes labels with images only: the probe does without.
    "GIT": ("git", {**WIDE, "vision_config": VISION}, {"input_ids"}),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_inputs_are_made_up_for_unusual_models(name, tmp_path, monkeypatch):
    model_type, options, expected = UNUSUAL[name]
    transformers.AutoConfig.for_model(model_type, **options).save_pretrained(tmp_path)
    used = {}
    original = transformers.PreTrainedModel.__call__

    def call(model, *args, **kwargs):
        used[type(model).__name__] = set(kwargs)
        return original(model, *args, **kwargs)

    monkeypatch.setattr(transformers.PreTrainedModel, "__call__", call)
    report = inspect_model(str(tmp_path), gradients=1)
    assert sum(weight.effect > 0 for weight in report.weights.values()) > 5
    assert used[report.model] == expected


def test_small_initialiser_of_sam_is_seen_through(tmp_path):
    """Its vision encoder is initialised with a standard deviation of 1e-10."""
    small = {**VISION, "image_size": 32, "patch_size": 8, "output_channels": 8, "window_size": 2}
    config = transformers.SamConfig(
        vision_config={**small, "num_pos_feats": 4, "global_attn_indexes": [1], "mlp_dim": 16},
        prompt_encoder_config={"hidden_size": 8, "image_size": 32, "patch_size": 8,
                               "mask_input_channels": 4, "image_embedding_size": 4},
        mask_decoder_config={"hidden_size": 8, "mlp_dim": 8, "num_attention_heads": 2,
                             "num_hidden_layers": 1, "iou_head_hidden_dim": 8},
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    report = inspect_model(str(tmp_path), gradients=1)
    assert any("initialised too small" in note for note in report.notes)
    alive = {n: w for n, w in report.weights.items() if w.effect > 0 and "vision" in n}
    assert len(alive) > 10
    # A convolution, and a LayerNorm over channels behind it, in the neck.
    tensor = {n for n, w in alive.items() if w.granularity == "tensor"}
    assert any(re.search(r"neck\.conv2\.weight$", name) for name in tensor)
    assert not any("attn" in name or "mlp" in name for name in tensor)


ONE = {"model_type": "decision_transformer", "state_dim": 4, "act_dim": 2, "hidden_size": 16,
       "n_layer": 1, "n_head": 2, "n_positions": 32}  # fmt: skip
FUNCTION = """
import torch

def one(model):
    size = model.config.state_dim
    return {"states": torch.randn(2, 5, size), "actions": torch.randn(2, 5, 2),
            "rewards": torch.randn(2, 5, 1), "returns_to_go": torch.randn(2, 5, 1),
            "timesteps": torch.arange(5).repeat(2, 1), "attention_mask": torch.ones(2, 5)}

def none():
    return []

def broken():
    raise KeyError("no such file")
"""


@pytest.fixture
def decisions(tmp_path, monkeypatch):
    """A model whose inputs cannot be made up, in a folder with a file that makes them."""
    options = {key: value for key, value in ONE.items() if key != "model_type"}
    config = transformers.AutoConfig.for_model(ONE["model_type"], **options)
    config.save_pretrained(tmp_path)
    (tmp_path / "batches_of_mine.py").write_text(FUNCTION)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return str(tmp_path / "config.json")


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["inspect", *arguments])
    assert exit_.value.code == 2
    return " ".join(capsys.readouterr().err.split()).partition("error: ")[2]


def test_inputs_that_cannot_be_made_up_are_asked_for_in_a_sentence(decisions, capsys):
    error = refused([decisions], capsys)
    assert error.startswith("inputs=None, and DecisionTransformerModel takes states, which the")
    assert error.endswith("--inputs MODULE:FUNCTION, a function that returns one).")
    assert error.count(". ") == 0


def test_inputs_come_from_a_function(decisions, capsys):
    main(["inspect", decisions, "--inputs", "batches_of_mine:one", "--gradients", "1"])
    assert capsys.readouterr().out.startswith("DecisionTransformerModel: ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("batches_of_mine", "must be MODULE:FUNCTION, as in batches:one"),
        ("no_such_file:one", "--inputs no_such_file:one cannot be found (No module named"),
        ("batches_of_mine:two", "--inputs batches_of_mine:two cannot be found"),
        ("batches_of_mine:none", "inputs holds no batch"),
        ("batches_of_mine:broken", "--inputs batches_of_mine:broken failed: KeyError: 'no such"),
    ],
)
def test_function_that_gives_no_inputs_is_refused(decisions, capsys, name, message):
    assert message in refused([decisions, "--inputs", name], capsys)


def test_function_of_python_is_given_the_model(decisions):
    def one(model):
        assert isinstance(model, transformers.DecisionTransformerModel)
        return {
            "states": torch.randn(2, 5, 4),
            "actions": torch.randn(2, 5, 2),
            "rewards": torch.randn(2, 5, 1),
            "returns_to_go": torch.randn(2, 5, 1),
            "timesteps": torch.arange(5).repeat(2, 1),
            "attention_mask": torch.ones(2, 5),
        }

    assert inspect_model(decisions, inputs=one, gradients=1).model == "DecisionTransformerModel"


def test_config_that_makes_no_model_is_told(capsys):
    error = refused(["autoformer"], capsys)
    assert "AutoformerForPrediction cannot be built" in error or "AutoformerModel cannot" in error
    assert "--set KEY=VALUE" in error


def test_layers_that_cannot_be_cut_are_all_probed(monkeypatch):
    """A config that checks its layers refuses some of the shorter ones."""
    config = transformers.AutoConfig.for_model("llama", **{**WIDE, "num_hidden_layers": 4})
    original = models._build

    def build(config):
        if config.num_hidden_layers < 4:
            raise ValueError("the set of layers is another")
        return original(config)

    monkeypatch.setattr(models, "_build", build)
    plan = models._plan(config, whole=False)
    assert plan.config.num_hidden_layers == 4


@pytest.mark.parametrize(
    ("taken", "config", "message"),
    [
        ("pixel_values", transformers.ViTConfig(**VISION), None),
        ("input_features", transformers.ViTConfig(**VISION), "takes input_features, which the"),
        ("hidden", transformers.ViTConfig(**VISION), "takes hidden, which the"),
    ],
)
def test_main_input_is_one_that_forward_takes(taken, config, message):
    """Some towers of models keep the name `input_ids` and take something else."""
    space: dict = {}
    exec(f"def forward(self, {taken}): return self.body({taken}.flatten(1)[:, :6])", space)
    body = {"main_input_name": "input_ids", "forward": space["forward"]}
    model = type("Tower", (nn.Module,), body)()
    model.config, model.body = config, linear()
    if message is None:
        assert probe(model, gradients=1).granularities == {"body.weight": None}
        return
    with pytest.raises(ValueError, match=message):
        probe(model)


def test_every_way_is_tried_and_the_first_failure_told(monkeypatch):
    class Never(nn.Module):
        main_input_name = "pixel_values"

        def __init__(self):
            super().__init__()
            self.config = transformers.ViTConfig(**VISION | {"image_size": 128})
            self.body = linear()
            self.seen = []

        def forward(self, pixel_values, labels=None):
            raise IndexError(f"of {pixel_values.shape[-1]}")

    ways = list(dummy_inputs.dummy_batches(Never(), 1, 0))
    assert [way[0]["pixel_values"].shape[-1] for way in ways] == [64, 128]
    with pytest.raises(ValueError, match=r"Never does not run .*64\)\): IndexError: of 64; pass"):
        probe(Never())
