"""--optim_args: what each key accepts, what it becomes, and what the refusals say."""

from types import SimpleNamespace

import pytest

from hf_adamp.integration.options import Options, parse_optim_args, read_options

GOOD = [
    ("adamp", None, {}),
    ("adamp", "", {}),
    ("adamp", "delta=0.05", {"delta": 0.05}),
    ("adamp", "delta=1e-1, wd_ratio = .5", {"delta": 0.1, "wd_ratio": 0.5}),
    ("adamp", "nesterov=true", {"nesterov": True}),
    ("adamp", "nesterov=false", {"nesterov": False}),
    ("adamp", "nesterov=False", {"nesterov": False}),
    ("adamp", "nesterov=0", {"nesterov": False}),
    ("adamp", "nesterov=yes", {"nesterov": True}),
    ("adamp", "foreach=none,fused=false", {"foreach": None, "fused": False}),
    ("adamp", "betas=0.9:0.99", {"betas": (0.9, 0.99)}),
    ("adamp", "beta1=0.8,beta2=0.99", {"beta1": 0.8, "beta2": 0.99}),
    ("adamp", "groups=transformers", {"groups": "transformers"}),
    ("adamp", "groups=hf_adamp", {"groups": "hf_adamp"}),
    ("adamp", "scale_invariant=row", {"scale_invariant": "row"}),
    ("sgdp", "scale_invariant=Tensor", {"scale_invariant": "tensor"}),
    ("adamp", "scale_invariant=rows:512+64", {"scale_invariant": ("rows", (512, 64))}),
    ("adamp", "scale_invariant=experts:in_out", {"scale_invariant": ("experts", "in_out")}),
    ("adamp", "scale_invariant=auto", {"scale_invariant": "auto"}),
    ("adamp", "scale_invariant=false", {"scale_invariant": False}),
    ("adamp", {"scale_invariant": False}, {"scale_invariant": False}),
    ("adamp", "scale_invariant=head:8,delta=0", {"scale_invariant": ("head", 8), "delta": 0.0}),
    ("adamp", "scale_invariant=head_dim: 64", {"scale_invariant": ("head_dim", 64)}),
    ("adamp", {"scale_invariant": ["head", 8]}, {"scale_invariant": ["head", 8]}),
    ("adamp", {"scale_invariant": {"a": None}}, {"scale_invariant": {"a": False}}),
    ("sgdp", "momentum=0.9,dampening=0.1", {"momentum": 0.9, "dampening": 0.1}),
    ("sgdp", "nesterov=true,delta=0.2", {"nesterov": True, "delta": 0.2}),
    ("adamp", {"delta": 0.05, "nesterov": False}, {"delta": 0.05, "nesterov": False}),
    ("adamp", {"betas": [0.9, 0.99], "fused": None}, {"betas": (0.9, 0.99), "fused": None}),
]

ADAMP_KEYS = (
    "beta1, beta2, betas, delta, foreach, fused, groups, nesterov, rounding, scale_invariant, "
    "state_dtype, wd_ratio"
)
SGDP_KEYS = (
    "dampening, delta, foreach, fused, groups, momentum, nesterov, rounding, scale_invariant, "
    "state_dtype, wd_ratio"
)

BAD = [
    (
        "adamp",
        "detla=0.1",
        f'has unknown key "detla", did you mean "delta"; known keys: {ADAMP_KEYS}.',
    ),
    ("adamp", "zzz=1", f'has unknown key "zzz"; known keys: {ADAMP_KEYS}.'),
    (
        "adamp",
        "momentum=0.9",
        f'has unknown key "momentum", which adamp does not have; known keys: {ADAMP_KEYS}.',
    ),
    (
        "sgdp",
        "beta1=0.9",
        f'has unknown key "beta1", which sgdp does not have; known keys: {SGDP_KEYS}.',
    ),
    ("adamp", "nesterov=Fals", "nesterov=Fals must be true or false."),
    ("adamp", {"nesterov": 2}, "nesterov=2 must be true or false."),
    ("adamp", "fused=maybe", "fused=maybe must be true, false or none."),
    ("adamp", "delta=ten", "delta=ten must be a number."),
    ("adamp", {"delta": True}, "delta=True must be a number."),
    ("adamp", {"delta": None}, "delta=None must be a number."),
    ("adamp", "groups=torch", "groups=torch must be hf_adamp or transformers."),
    (
        "adamp",
        "scale_invariant=rows",
        "=rows must be auto, row, tensor, head:HEADS, head_dim:ROWS, rows:ROWS+ROWS, "
        "experts:out_in, experts:in_out, false or a file FILE.json.",
    ),
    ("adamp", "scale_invariant=head", "scale_invariant=head must be auto"),
    ("adamp", "scale_invariant=head:x", "scale_invariant=head:x must be auto"),
    ("adamp", "scale_invariant=true", "scale_invariant=true must be auto"),
    (
        "adamp",
        "scale_invariant=nowhere.json",
        "must be a JSON file of names and granularities ([Errno 2] No such file",
    ),
    ("adamp", {"scale_invariant": {"a": "rows"}}, "scale_invariance['a']='rows' must be"),
    ("adamp", "betas=0.9", "betas=0.9 must be two numbers joined by a colon"),
    ("adamp", "betas=0.9:0.99:0.999", "must be two numbers joined by a colon"),
    ("adamp", "betas=0.9:x", "must be two numbers joined by a colon"),
    (
        "adamp",
        "betas=0.9,0.99",
        'has "0.99", not key=value; a comma separates options: write betas=',
    ),
    ("adamp", "delta", 'has "delta", not key=value; write key=value,key=value.'),
    ("adamp", "delta=", 'has "delta=", not key=value'),
    ("adamp", "delta=0.1,", 'has "", not key=value'),
    ("adamp", "delta=0.1;wd_ratio=0.1", "delta=0.1;wd_ratio=0.1 must be a number."),
    ("adamp", "delta=0.1,delta=0.2", 'has key "delta" twice; give it once.'),
    ("adamp", "betas=0.9:0.99,beta1=0.8", "has both betas and beta1; give one of them."),
    ("adamp", "beta2=0.8,betas=0.9:0.99", "has both betas and beta2; give one of them."),
    ("adamp", "lr=1e-3", "cannot set lr=1e-3; use --learning_rate 1e-3."),
    ("sgdp", "weight_decay=0.1", "cannot set weight_decay=0.1; use --weight_decay 0.1."),
    ("adamp", "eps=1e-6", "cannot set eps=1e-6; use --adam_epsilon 1e-6."),
]


@pytest.mark.parametrize(("optimizer", "text", "expected"), GOOD)
def test_optim_args_are_typed(optimizer, text, expected):
    options = parse_optim_args(text, optimizer)
    assert options == expected
    assert {k: type(v) for k, v in options.items()} == {k: type(v) for k, v in expected.items()}


@pytest.mark.parametrize(("optimizer", "text", "message"), BAD)
def test_bad_optim_args_are_rejected(optimizer, text, message):
    with pytest.raises(ValueError, match="--optim_args") as error:
        parse_optim_args(text, optimizer)
    assert message in str(error.value)


def arguments(**overrides):
    fields = {
        "optim": "adamp",
        "optim_args": None,
        "learning_rate": 3e-4,
        "adam_beta1": 0.85,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-6,
    }
    return SimpleNamespace(**{**fields, **overrides})


def test_adamp_takes_lr_betas_and_eps_from_training_arguments():
    expected = {"lr": 3e-4, "betas": (0.85, 0.95), "eps": 1e-6}
    assert read_options(arguments()) == Options("adamp", expected, "hf_adamp")


def test_sgdp_has_the_papers_momentum_unless_told():
    """Without momentum there is nothing that SGDP could slow down."""
    assert read_options(arguments(optim="sgdp")).kwargs["momentum"] == 0.9
    options = read_options(arguments(optim="sgdp", optim_args="momentum=0"))
    assert options.kwargs["momentum"] == 0
    assert "momentum" not in read_options(arguments(optim="adamp")).kwargs


def test_sgdp_takes_lr_and_eps_from_training_arguments():
    options = read_options(arguments(optim="sgdp", optim_args="momentum=0.9"))
    assert options == Options("sgdp", {"lr": 3e-4, "eps": 1e-6, "momentum": 0.9}, "hf_adamp")


@pytest.mark.parametrize(
    ("text", "betas"),
    [("beta1=0.5", (0.5, 0.95)), ("beta2=0.5", (0.85, 0.5)), ("betas=0.1:0.2", (0.1, 0.2))],
)
def test_betas_of_optim_args_win_over_training_arguments(text, betas):
    assert read_options(arguments(optim_args=text)).kwargs["betas"] == betas


def test_groups_are_no_keyword_of_the_optimizer():
    options = read_options(arguments(optim_args="groups=transformers"))
    assert options.groups == "transformers"
    assert "groups" not in options.kwargs


def test_foreign_optimizer_name_reads_as_adamp():
    assert read_options(arguments(optim="adamw_torch")).name == "adamp"


def test_scale_invariance_by_name_is_no_keyword_of_the_optimizer(tmp_path):
    file = tmp_path / "report.json"
    file.write_text('{"granularities": {"a.weight": ["head", 2], "b.weight": null}}')
    options = read_options(arguments(optim_args=f"scale_invariant={file}"))
    assert options.scale_invariance == {"a.weight": ("head", 2), "b.weight": False}
    assert "scale_invariant" not in options.kwargs


def test_scale_invariance_by_name_needs_our_groups(tmp_path):
    text = {"groups": "transformers", "scale_invariant": {"a": "row"}}
    with pytest.raises(ValueError, match=r"groups=transformers beside .*; use groups=hf_adamp"):
        read_options(arguments(optim_args=text))
    kwargs = read_options(arguments(optim_args="groups=transformers,scale_invariant=row")).kwargs
    assert kwargs["scale_invariant"] == "row"


def test_near_miss_of_a_granularity_gets_an_answer():
    with pytest.raises(ValueError, match=r"\(did you mean head:8\?\)"):
        parse_optim_args("scale_invariant=heads:8", "adamp")


def test_any_object_with_a_learning_rate_will_do():
    """What argparse makes in a script without a Trainer."""
    options = read_options(SimpleNamespace(learning_rate=1e-3))
    assert options.kwargs == {"lr": 1e-3, "eps": 1e-8, "betas": (0.9, 0.999)}
    with pytest.raises(TypeError, match="without learning_rate; pass TrainingArguments"):
        read_options(SimpleNamespace(lr=1e-3))
