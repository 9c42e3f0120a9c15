"""Which parameters get weight decay: by module type, shape and the word bias."""

import subprocess
import sys

import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

from hf_adamp.param_groups import decay_parameter_names, get_param_groups
from tests.tables import decay_rules


def names_without_decay(model, **options):
    decayed = decay_parameter_names(model, **options)
    return {n for n, p in model.named_parameters() if p.requires_grad and n not in decayed}


class LlamaRMSNorm(nn.Module):
    """A third-party norm, outside torch's classes."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(*shape))


class PlainSubclass(LlamaRMSNorm):
    """Its own name does not say that it is a norm."""


class NormedEmbedding(nn.Embedding):
    """An embedding that normalizes its input: still a table of weights."""


class SurfaceNormalHead(nn.Module):
    """Estimates normals; not a normalization."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 4))


class PreNormEncoder(nn.Module):
    """A network named after its norms: its own matrices are no norm's parameters."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.ones(1, 5, 4))
        self.norm_out = nn.Linear(4, 4)


class ExpertsWithBias(nn.Module):
    """Expert weights and biases in one tensor each, as in gpt-oss."""

    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.ones(2, 4, 8))
        self.gate_up_proj_bias = nn.Parameter(torch.ones(2, 8))
        self.pos_bias_u = nn.Parameter(torch.ones(2, 4))
        self.attention_biases = nn.Parameter(torch.ones(2, 4))
        self.biased_mixture = nn.Parameter(torch.ones(2, 4))


class TokensAndScales(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.ones(1, 1, 4))
        self.layer_scale = nn.Parameter(torch.ones(4))
        self.logit_scale = nn.Parameter(torch.ones(()))
        self.grn = nn.Parameter(torch.ones(1, 1, 1, 4))
        self.position_embeddings = nn.Parameter(torch.ones(1, 3, 4))


TORCH_NORMS = [
    nn.BatchNorm1d(4),
    nn.BatchNorm2d(4),
    nn.BatchNorm3d(4),
    nn.SyncBatchNorm(4),
    nn.InstanceNorm1d(4, affine=True),
    nn.InstanceNorm2d(4, affine=True),
    nn.InstanceNorm3d(4, affine=True),
    nn.GroupNorm(2, 4),
    nn.LayerNorm((3, 4)),
    nn.RMSNorm((3, 4)),
]


@pytest.mark.parametrize("norm", TORCH_NORMS, ids=lambda norm: type(norm).__name__)
def test_torch_norm_gets_no_decay(norm):
    """Two-dimensional gains included: only the type can tell those from a matrix."""
    model = nn.Sequential(nn.Linear(4, 4), norm)
    assert decay_parameter_names(model) == ["0.weight"]


def test_every_norm_of_torch_is_covered():
    named = {
        getattr(nn, name)
        for name in dir(nn)
        if name.endswith("Norm") or (name[-1].isdigit() and "Norm" in name)
    }
    covered = {type(norm) for norm in TORCH_NORMS} | {
        cls for cls in named if cls.__name__.startswith("Lazy")
    }
    # Without parameters; a subclass may add some.
    assert named - covered == {nn.LocalResponseNorm}


@pytest.mark.parametrize("norm", [nn.LocalResponseNorm(2), nn.LayerNorm((3, 4), bias=False)])
def test_torch_norm_with_a_child_gets_no_decay(norm):
    """As where a norm carries its activation: the type still says that it is a norm."""
    norm.weight = nn.Parameter(torch.ones(3, 4))
    norm.activation = nn.ReLU()
    assert names_without_decay(nn.Sequential(nn.Linear(4, 4, bias=False), norm)) == {"1.weight"}


@pytest.mark.parametrize(
    "norm",
    [LlamaRMSNorm(4), LlamaRMSNorm(2, 4), PlainSubclass(2, 4)],
    ids=lambda n: f"{type(n).__name__}-{n.weight.ndim}d",
)
def test_third_party_norm_gets_no_decay(norm):
    model = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": norm})
    assert names_without_decay(model) == {"b.weight"}


@pytest.mark.parametrize(
    "model",
    [NormedEmbedding(5, 4), SurfaceNormalHead(), PreNormEncoder()],
    ids=lambda m: type(m).__name__,
)
def test_module_that_only_sounds_like_a_norm_gets_decay(model):
    assert names_without_decay(model) <= {"norm_out.bias"}


def test_bias_is_a_word_of_the_parameters_own_name():
    model = nn.ModuleDict({"bias": nn.Linear(4, 4), "experts": ExpertsWithBias()})
    assert decay_parameter_names(model) == [
        "bias.weight",
        "experts.gate_up_proj",
        "experts.biased_mixture",
    ]


def test_tokens_and_scales_get_no_decay():
    assert decay_parameter_names(TokensAndScales()) == ["position_embeddings"]


@pytest.mark.parametrize(
    ("module", "decayed"),
    [
        (nn.Linear(4, 1), {"weight"}),
        (nn.Linear(1, 1), {"weight"}),
        (nn.Embedding(1, 4), {"weight"}),
        (nn.EmbeddingBag(4, 1), {"weight"}),
        (nn.Conv1d(1, 1, 3), {"weight"}),
        (nn.ConvTranspose2d(1, 1, 1), {"weight"}),
        (nn.Bilinear(1, 1, 4), {"weight"}),
        (nn.GRUCell(1, 1), {"weight_ih", "weight_hh"}),
        (
            nn.LSTM(1, 2, bidirectional=True, proj_size=1),
            {
                f"weight_{kind}_l0{direction}"
                for kind in ("ih", "hh", "hr")
                for direction in ("", "_reverse")
            },
        ),
        (
            nn.MultiheadAttention(4, 1, kdim=1, vdim=1, add_bias_kv=True),
            {"q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"},
        ),
        (nn.MultiheadAttention(4, 1), {"in_proj_weight", "out_proj.weight"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_thin_matrix_gets_decay(module, decayed):
    assert set(decay_parameter_names(module)) == decayed


def test_vector_added_to_a_linear_gets_no_decay():
    linear = nn.Linear(4, 4, bias=False)
    linear.weight_scale = nn.Parameter(torch.ones(4, 1))
    assert names_without_decay(linear) == {"weight_scale"}


@pytest.mark.parametrize("features", [1, 4])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_weight_norm_gain_gets_no_decay(features):
    hooked = weight_norm(nn.Linear(4, features))
    assert decay_parameter_names(hooked) == ["weight_v"]
    assert names_without_decay(hooked) == {"weight_g", "bias"}
    parametrized = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, features)))
    assert decay_parameter_names(parametrized) == ["0.parametrizations.weight.original1"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_weight_norm_on_a_recurrent_weight_spares_the_gain():
    cell = weight_norm(nn.GRUCell(1, 1, bias=False), "weight_hh")
    assert names_without_decay(cell) == {"weight_hh_g"}


def test_name_weight_g_without_weight_norm_is_a_matrix():
    module = spectral_norm(nn.Linear(4, 4, bias=False))
    module.register_forward_pre_hook(lambda module, inputs: None)
    module.weight_g = nn.Parameter(torch.ones(3, 4))
    assert decay_parameter_names(module) == ["weight_orig", "weight_g"]


class LowRank(nn.Module):
    """A parametrization by two factors, which is no weight_norm."""

    def forward(self, left, right):
        return left @ right

    def right_inverse(self, weight):
        return weight[:, :2].clone(), weight[:2].clone()


def test_factors_of_another_parametrization_get_decay():
    linear = nn.Linear(4, 4, bias=False)
    parametrize.register_parametrization(linear, "weight", LowRank())
    originals = ["parametrizations.weight.original0", "parametrizations.weight.original1"]
    assert decay_parameter_names(linear) == originals


@pytest.mark.parametrize("features", [1, 4])
def test_spectral_norm_changes_no_decision(features):
    assert decay_parameter_names(spectral_norm(nn.Linear(4, features))) == ["weight_orig"]
    parametrized = parametrizations.spectral_norm(nn.Linear(4, features))
    assert decay_parameter_names(parametrized) == ["parametrizations.weight.original"]


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4, 1))

    def forward(self, weight):
        return weight * self.scale


def test_parameter_inside_a_parametrization_is_judged_by_itself():
    linear = parametrize.register_parametrization(nn.Linear(4, 4), "weight", Scale())
    assert decay_parameter_names(linear) == ["parametrizations.weight.original"]


def test_parametrized_bias_gets_no_decay():
    linear = parametrize.register_parametrization(nn.Linear(4, 4), "bias", nn.Identity())
    assert decay_parameter_names(linear) == ["weight"]


def test_authors_mark_spares_a_matrix():
    model = nn.Linear(4, 4)
    model.weight._no_weight_decay = True
    assert decay_parameter_names(model) == []


def test_zero3_shard_is_judged_by_its_full_shape():
    module = nn.Module()
    module.table = nn.Parameter(torch.empty(0))
    module.table.ds_shape = torch.Size((3, 4))
    assert decay_parameter_names(module) == ["table"]


def test_tied_weight_appears_once():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    (group,) = get_param_groups(model, 0.1)
    assert [id(p) for p in group["params"]] == [id(model["embed"].weight)]


def test_frozen_weight_is_in_no_group():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    groups = get_param_groups(model, 0.1)
    assert [p for group in groups for p in group["params"]] == [model[1].weight, model[1].bias]


def test_groups_keep_the_models_order_and_torchs_keys():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    decay, no_decay = get_param_groups(model, 0.1)
    assert decay["params"] == [model[0].weight, model[2].weight]
    assert no_decay["params"] == [model[0].bias, model[1].weight, model[1].bias, model[2].bias]
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.1, 0.0)
    assert decay.keys() == no_decay.keys() == {"params", "weight_decay"}
    optimizer = torch.optim.AdamW([decay, no_decay], lr=0.01, weight_decay=0.5)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


@pytest.mark.parametrize(
    ("model", "expected"), [(nn.Linear(2, 2, bias=False), 0.1), (nn.LayerNorm(2), 0.0)]
)
def test_empty_group_is_dropped(model, expected):
    (group,) = get_param_groups(model, 0.1)
    assert group["weight_decay"] == expected


def test_callable_rule_receives_name_parameter_and_module():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4, bias=False)))
    seen = []

    def rule(name, parameter, module):
        seen.append((name, parameter, module))
        return name.endswith("original0")

    gain, direction = model.parameters()
    assert get_param_groups(model, 0.1, rule=rule) == [
        {"params": [gain], "weight_decay": 0.1},
        {"params": [direction], "weight_decay": 0.0},
    ]
    assert seen == [
        ("0.parametrizations.weight.original0", gain, model[0]),
        ("0.parametrizations.weight.original1", direction, model[0]),
    ]


def frozen():
    return nn.Linear(2, 2).requires_grad_(False)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (
            (nn.Linear(2, 2), -0.1),
            {},
            ValueError,
            r"weight_decay=-0.1 must be at least 0 and finite",
        ),
        (
            (nn.Linear(2, 2), float("nan")),
            {},
            ValueError,
            "weight_decay=nan must be at least 0 and finite",
        ),
        ((nn.Linear(2, 2), "0.1"), {}, TypeError, "weight_decay='0.1' must be a number"),
        ((nn.Linear(2, 2), True), {}, TypeError, "weight_decay=True must be a number"),
        (([], 0.1), {}, TypeError, "model must be a torch.nn.Module, not list"),
        ((frozen(), 0.1), {}, ValueError, r"Linear has no trainable parameter \(0 of 2"),
        ((nn.Identity(), 0.1), {}, ValueError, r"Identity has no trainable parameter \(0 of 0"),
        (
            (nn.Linear(2, 2), 0.1),
            {"rule": "norms"},
            ValueError,
            "rule='norms' is unknown; known rules: hf_adamp, transformers",
        ),
        (
            (nn.Linear(2, 2), 0.1),
            {"rule": lambda name, parameter, module: None},
            TypeError,
            "rule returned None for weight; it must return a bool",
        ),
    ],
)
def test_bad_argument_is_rejected(arguments, options, error, message):
    with pytest.raises(error, match=message):
        get_param_groups(*arguments, **options)


def test_module_does_not_import_transformers():
    code = (
        "import sys, torch; from hf_adamp.param_groups import decay_parameter_names;"
        "decay_parameter_names(torch.nn.Linear(2, 2)); assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("model_type", ["bert", "t5", "resnet"])
def test_transformers_rule_is_that_of_its_trainer(model_type, tmp_path):
    (options,) = (row[2] for row in decay_rules.ARCHITECTURES if row[1] == model_type)
    model = decay_rules.build(model_type, options)
    arguments = transformers.TrainingArguments(tmp_path, use_cpu=True, report_to="none")
    arguments.weight_decay = 0.1
    theirs = transformers.Trainer(model, arguments).create_optimizer().param_groups
    ours = get_param_groups(model, 0.1, rule="transformers")
    assert [(g["weight_decay"], [id(p) for p in g["params"]]) for g in ours] == [
        (g["weight_decay"], [id(p) for p in g["params"]]) for g in theirs
    ]


@pytest.mark.parametrize("architecture", decay_rules.ARCHITECTURES, ids=lambda row: row[0])
def test_architecture_decays_matrices_and_nothing_else(architecture):
    """An independent oracle: in these models, what to spare is a vector or a token, in any name."""
    model = decay_rules.build(*architecture[1:])
    matrices = [n for n, p in model.named_parameters() if sum(size > 1 for size in p.shape) > 1]
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert decay_parameter_names(model) == [n for n in matrices if n in trainable]


def test_committed_table_equals_the_code():
    table = decay_rules.SECTION.read()
    if f"Transformers {transformers.__version__};" not in table:
        pytest.skip(f"table is of another release than Transformers {transformers.__version__}")
    assert table == decay_rules.table()


REGRESSION = {"num_labels": 1}


@pytest.mark.parametrize(
    ("model_type", "options", "only_transformers", "only_ours"),
    [
        ("bert", {**decay_rules.WIDE, **REGRESSION}, [], []),
        ("deberta-v2", {**decay_rules.WIDE, **REGRESSION, "relative_attention": True}, [], []),
        (
            "xlnet",
            {"vocab_size": 64, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32},
            ["transformer.mask_emb"],
            [],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_classifier_differs_from_transformers_in(model_type, options, only_transformers, only_ours):
    model = decay_rules.classifier(model_type, options)
    head = [n for n, p in model.named_parameters() if 1 in p.shape and p.ndim == 2]
    assert set(head) <= set(decay_parameter_names(model))
    assert decay_rules.differences(model) == (only_transformers, only_ours)


def test_mamba_spares_its_norm_and_skip_vector():
    tiny = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    model = decay_rules.build("mamba", tiny)
    # A time step rank of 1 makes this projection N x 1, yet it is a Linear.
    assert "layers.0.mixer.dt_proj.weight" in decay_parameter_names(model)
    assert decay_rules.differences(model) == (["layers.0.mixer.D", "norm_f.weight"], [])


@pytest.mark.parametrize("heads", [1, 2])
def test_swin_spares_its_bias_table_whatever_the_number_of_heads(heads):
    tiny = {"image_size": 16, "patch_size": 4, "embed_dim": 8, "window_size": 2}
    model = decay_rules.build("swin", {**tiny, "depths": [1], "num_heads": [heads]})
    spared = names_without_decay(model)
    assert any(name.endswith("relative_position_bias_table") for name in spared)
    assert decay_rules.differences(model) == ([], [])


def lora_model(**options):
    peft = pytest.importorskip("peft")
    model = decay_rules.classifier("bert", decay_rules.WIDE)
    config = peft.LoraConfig(target_modules=["query", "value"], task_type="SEQ_CLS", **options)
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize("rank", [1, 4])
def test_lora_matrices_and_head_get_decay(rank):
    model = lora_model(r=rank)
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert decay_parameter_names(model) == [n for n in trainable if not n.endswith("bias")]
    assert sum("lora_" in n for n in trainable) == 8
    assert sum(len(g["params"]) for g in get_param_groups(model, 0.1)) == len(trainable)


def test_dora_magnitude_gets_no_decay():
    spared = names_without_decay(lora_model(r=2, use_dora=True))
    assert sum("lora_magnitude_vector" in name for name in spared) == 4
