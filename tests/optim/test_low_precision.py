"""Weights and state in fewer bits: what rounding to nearest loses is not lost."""

import copy
import io
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from hf_adamp import SGDP, AdamP
from hf_adamp.optim.backends.torch_ops import foreach
from hf_adamp.optim.storage import Noise, load
from tests.training import assert_identical, params_of, run_steps, snapshot
from tests.weights import generator, make_grads, make_weights

OPTIMIZERS = pytest.mark.parametrize(
    "make",
    [
        lambda params, **kwargs: AdamP(params, **{"lr": 1e-3, "weight_decay": 0.01, **kwargs}),
        lambda params, **kwargs: SGDP(params, **{"lr": 1e-2, "momentum": 0.9, **kwargs}),
    ],
    ids=["AdamP", "SGDP"],
)
LOW = pytest.mark.parametrize(
    "kwargs",
    [
        {"rounding": "kahan"},
        {"rounding": "stochastic"},
        {"state_dtype": "bfloat16"},
        {"state_dtype": "8bit"},
        {"rounding": "kahan", "state_dtype": "8bit"},
    ],
    ids=str,
)


def bfloat16_model():
    """Weights large enough for blocks of 8 bits, and some that are not."""
    draw = generator(0)
    shapes = [(64, 64), (48, 16, 3, 3), (64,), (5, 3)]
    return [nn.Parameter(torch.randn(s, generator=draw).bfloat16()) for s in shapes]


def gradients(params, steps, seed=1):
    """What a network gives: a direction that lasts, and noise."""
    draw = generator(seed)
    lasting = [torch.randn(p.shape, generator=draw) * 0.01 for p in params]
    for _ in range(steps):
        yield [g + torch.randn(g.shape, generator=draw) * 0.01 for g in lasting]


def error(weights, exact):
    """Root mean square difference of all elements."""
    differences = [(w.detach().float() - e.detach()) for w, e in zip(weights, exact, strict=True)]
    return torch.cat([d.flatten() for d in differences]).square().mean().sqrt().item()


@pytest.mark.parametrize("rounding", ["nearest", "kahan", "stochastic"])
def test_updates_far_below_a_weight_are_not_lost(rounding):
    """500 steps of 1e-4 from 1: in bfloat16 the number next to 1 is 0.9961."""
    weight = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = AdamP([weight], lr=1e-4, betas=(0.0, 0.0), rounding=rounding)
    for _ in range(500):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    moved = 1 - weight.detach().float().mean().item()
    assert moved == (0 if rounding == "nearest" else pytest.approx(0.05, abs=0.002))


@OPTIMIZERS
@pytest.mark.parametrize(("rounding", "gain"), [("kahan", 8), ("stochastic", 1.5)])
def test_rounding_follows_the_float32_run(make, rounding, gain):
    """Projection, decay and momentum included; kahan only rounds at the end."""
    runs = {}
    for name in ("float32", "nearest", rounding):
        params = bfloat16_model()
        if name == "float32":
            params = [nn.Parameter(p.detach().float()) for p in params]
        optimizer = make(params, rounding="nearest" if name == "float32" else name, lr=3e-4)
        # The same numbers for all: those that bfloat16 holds.
        grads = [[g.bfloat16() for g in step] for step in gradients(params, 300)]
        run_steps(optimizer, grads)
        runs[name] = params
        if rounding == "kahan" == name:
            kept = [optimizer.state[p]["compensation"].float() for p in params]
            runs["whole"] = [p.detach().float() + c for p, c in zip(params, kept, strict=True)]
    nearest, ours = (error(runs[name], runs["float32"]) for name in ("nearest", rounding))
    # Storing the float32 run's end in bfloat16 makes an error of its own.
    stored = error([p.bfloat16() for p in runs["float32"]], runs["float32"])
    assert ours * gain < nearest + stored * gain
    if rounding == "kahan":
        assert error(runs["whole"], runs["float32"]) < 0.02 * nearest


def test_stochastic_rounding_takes_a_neighbour_and_is_right_on_average():
    value = torch.tensor(1 + 1 / 512 + 1 / 128).expand(200_000).contiguous()
    rounded = Noise(value.device, 0).round(value)
    below, above = 1 + 1 / 128, 1 + 2 / 128
    assert set(rounded.unique().tolist()) == {below, above}
    # A quarter of the way: within four standard deviations of a quarter.
    share = (rounded == above).float().mean().item()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 200_000) ** 0.5
    negative = Noise(value.device, 0).round(-value)
    assert torch.equal(negative, -rounded)


def test_stochastic_rounding_leaves_what_bfloat16_holds():
    values = torch.tensor([0.0, 1.0, -3.5, float("inf"), float("-inf"), 2.0**-130])
    assert torch.equal(Noise(values.device, 3).round(values), values)
    assert Noise(values.device, 3).round(torch.tensor([float("nan")])).isnan().all()


@OPTIMIZERS
@LOW
def test_low_precision_does_not_depend_on_anybody_elses_random_numbers(make, kwargs):
    snapshots = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        params = bfloat16_model()
        optimizer = make(params, **kwargs)
        run_steps(optimizer, gradients(params, 4))
        snapshots.append(held(optimizer))
    assert_identical(*snapshots)


def held(optimizer):
    """Copies of weights and state, 8-bit state as the numbers that it stands for."""
    params = params_of(optimizer)
    return [param.detach().clone() for param in params], [
        {
            key: load(value).clone() if torch.is_tensor(value) else value
            for key, value in optimizer.state[param].items()
        }
        for param in params
    ]


@OPTIMIZERS
@LOW
def test_low_precision_goes_on_from_a_checkpoint(make, kwargs):
    params = bfloat16_model()
    optimizer = make(params, **kwargs)
    grads = list(gradients(params, 6))
    run_steps(optimizer, grads[:3])
    weights = [p.detach().clone() for p in params]
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    run_steps(optimizer, grads[3:])
    buffer.seek(0)
    resumed = [nn.Parameter(weight) for weight in weights]
    other = make(resumed, **kwargs)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    run_steps(other, grads[3:])
    assert_identical(held(other), held(optimizer))


@pytest.mark.parametrize("new", [None, "bfloat16", "8bit"])
@pytest.mark.parametrize("old", [None, "bfloat16", "8bit"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_checkpoints_take_the_precision_that_the_group_has(old, new, dtype):
    """A group's own state_dtype decides, as its weights' dtype does in torch."""
    params = [nn.Parameter(p.detach().to(dtype)) for p in bfloat16_model()]
    before = AdamP(params, state_dtype=old)
    run_steps(before, gradients(params, 3))
    saved = before.state_dict()
    saved["param_groups"][0]["state_dtype"] = new
    after = AdamP(params, state_dtype=new)
    after.load_state_dict(saved)
    fresh = AdamP(params, state_dtype=new)
    run_steps(fresh, gradients(params, 1))
    for param in params:
        for key in ("exp_avg", "exp_avg_sq"):
            moment, wanted = after.state[param][key], fresh.state[param][key]
            assert type(moment) is type(wanted)
            assert moment.dtype == wanted.dtype
            wide = load(moment)
            expected = load(before.state[param][key])
            # Eight bits a block, in the worst case of each.
            torch.testing.assert_close(wide, expected, rtol=0.05, atol=expected.abs().max() * 0.01)
    run_steps(after, gradients(params, 1))


@pytest.mark.parametrize(
    ("state_dtype", "deviation"), [("bfloat16", 0.06), ("8bit", 0.06)], ids=str
)
def test_low_precision_state_stays_near_float32_state(state_dtype, deviation):
    """200 steps; the difference as a share of how far the float32 run went."""
    ends = {}
    for name in (None, state_dtype):
        params = [nn.Parameter(p.detach().float()) for p in bfloat16_model()]
        start = [p.detach().clone() for p in params]
        run_steps(AdamP(params, lr=1e-3, state_dtype=name), gradients(params, 200))
        ends[name] = params
    went = error(ends[None], start)
    assert 0 < error(ends[state_dtype], ends[None]) < deviation * went


def test_second_moment_in_bfloat16_does_not_stand_still():
    """From 1 towards 4 by a thousandth of the rest a step, which nearest rounds away."""
    weight = nn.Parameter(torch.zeros(20_000))
    optimizer = AdamP([weight], lr=0.0, state_dtype="bfloat16")
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.state[weight]["exp_avg_sq"].fill_(1.0)
    for _ in range(500):
        weight.grad = torch.full_like(weight, 2.0)
        optimizer.step()
    mean = optimizer.state[weight]["exp_avg_sq"].float().mean().item()
    assert mean == pytest.approx(4 - 3 * 0.999**500, rel=2e-3)


def test_state_takes_the_memory_that_was_asked_for():
    for state_dtype, bytes_an_element in ((None, 8), ("bfloat16", 4), ("8bit", 2 + 8 / 256)):
        weight = nn.Parameter(torch.zeros(256, 1024))
        optimizer = AdamP([weight], state_dtype=state_dtype)
        run_steps(optimizer, [[torch.ones(256, 1024)]])
        buffer = io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        assert buffer.tell() / weight.numel() == pytest.approx(bytes_an_element, rel=0.05)


def test_tiny_second_moments_in_8_bits_do_not_make_huge_steps():
    """A block's largest gradient is 1e5 times its smallest, whose square 8 bits round to 0."""
    weight = nn.Parameter(torch.zeros(4096))
    optimizer = AdamP([weight], lr=1e-3, state_dtype="8bit")
    grad = torch.logspace(-5, 0, 256).repeat(16)
    for _ in range(20):
        before = weight.detach().clone()
        weight.grad = grad.clone()
        optimizer.step()
        assert (weight.detach() - before).abs().max() < 2e-3


@OPTIMIZERS
@LOW
@pytest.mark.parametrize("what", ["optimizer", "state_dict"])
def test_low_precision_goes_on_from_a_copy(make, kwargs, what):
    params = bfloat16_model()
    optimizer = make(params, **kwargs)
    grads = list(gradients(params, 4))
    run_steps(optimizer, grads[:2])
    if what == "optimizer":
        copied = copy.deepcopy(optimizer)
    else:
        copied = make([nn.Parameter(p.detach().clone()) for p in params], **kwargs)
        copied.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run_steps(copied, grads[2:])
    # Had it shared any state, these would start from what is not theirs.
    run_steps(optimizer, grads[2:])
    assert_identical(held(copied), held(optimizer))


def test_weights_in_working_precision_have_no_compensation():
    weights = [nn.Parameter(p.detach().float()) for p in bfloat16_model()] + bfloat16_model()
    optimizer = AdamP(weights, rounding="kahan")
    run_steps(optimizer, gradients(weights, 2))
    kept = [param for param in weights if "compensation" in optimizer.state[param]]
    assert [param.dtype for param in kept] == [torch.bfloat16] * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_compensation_of_a_weight_that_is_assigned_to_stays_below_rounding(dtype):
    """As after an average or a clipping of weights: what 100 lost is more than 0.01."""
    weight = nn.Parameter(torch.full((4, 4), 100.0, dtype=dtype))
    optimizer = AdamP([weight], lr=0.02, rounding="kahan")
    run_steps(optimizer, [[torch.ones(4, 4)]])
    assert (optimizer.state[weight]["compensation"].abs() > 0.01).all()
    with torch.no_grad():
        weight.fill_(0.01)
    optimizer.param_groups[0]["lr"] = 0.0
    before = weight.detach().clone()
    run_steps(optimizer, [[torch.ones(4, 4)]])
    torch.testing.assert_close(weight.detach(), before, rtol=torch.finfo(dtype).eps, atol=0.0)


@pytest.mark.parametrize("rounding", ["nearest", "kahan"])
def test_state_of_another_shape_is_refused_before_any_group_is_stepped(rounding):
    full, low = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3, 3).bfloat16())
    optimizer = AdamP([{"params": [full]}, {"params": [low], "rounding": rounding}])
    run_steps(optimizer, [[torch.ones(3, 3)] * 2])
    optimizer.state[low]["exp_avg"] = torch.zeros(2, 2)
    before = copy.deepcopy((full, optimizer.param_groups[1].get("rounded_steps")))
    with pytest.raises(RuntimeError, match=r"shape \(3, 3\) has a gradient or state of shape"):
        optimizer.step()
    assert torch.equal(full, before[0])
    assert optimizer.param_groups[1].get("rounded_steps") == before[1]


@OPTIMIZERS
@pytest.mark.parametrize("rounding", ["nearest", "kahan"])
def test_pieces_give_what_the_whole_gives(make, rounding, monkeypatch):
    snapshots = []
    for elements in (1, 1 << 20):
        monkeypatch.setattr(foreach, "_CPU_CHUNK_ELEMENTS", elements)
        params = bfloat16_model()
        optimizer = make(params, rounding=rounding, state_dtype="bfloat16", foreach=True)
        run_steps(optimizer, gradients(params, 4))
        snapshots.append(snapshot(optimizer))
    assert_identical(*snapshots)


@LOW
def test_every_kind_of_weight_takes_low_precision_steps(kwargs):
    weights = make_weights(torch.bfloat16)
    optimizer = AdamP(list(weights.values()), **kwargs)
    params = params_of(optimizer)
    optimizer.record_steps = True
    for step in range(3):
        grads = make_grads(params, "mix", step)
        grads[step] = None
        run_steps(optimizer, [grads])
    recorded = [param for record in optimizer.last_step for param in record.params]
    assert {id(p) for p in recorded} <= {id(p) for p in params}
    assert recorded
    assert all(p.isfinite().all() for p in params)


def test_groups_of_full_and_low_precision_are_stepped_side_by_side():
    low, full, alone = (nn.Parameter(p.detach().float()) for p in [bfloat16_model()[0]] * 3)
    both = AdamP([{"params": [low], "state_dtype": "bfloat16"}, {"params": [full]}])
    one = AdamP([alone])
    for (grad,) in gradients([full], 3):
        run_steps(both, [[grad, grad]])
        run_steps(one, [[grad]])
    assert torch.equal(full, alone)
    assert both.state[low]["exp_avg"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "dtype", "message"),
    [
        ({"rounding": "up"}, torch.bfloat16, r"rounding='up' must be \"nearest\""),
        ({"state_dtype": torch.bfloat16}, torch.float32, r"state_dtype=torch.bfloat16 must be"),
        ({"rounding": "stochastic"}, torch.float16, r"is float16, and rounding=\"stochastic\""),
        ({"state_dtype": "bfloat16"}, torch.float64, r"is float64, whose state is float64"),
    ],
)
def test_impossible_precision_is_refused(options, dtype, message):
    weight = nn.Parameter(torch.ones(3, 3, dtype=dtype))
    with pytest.raises(ValueError, match=message):
        AdamP([weight], **options)


@pytest.mark.parametrize("way", ["group", "cast", "checkpoint"])
def test_impossible_precision_is_refused_whenever_it_comes_about(way):
    weight = nn.Parameter(torch.ones(3, 3).bfloat16())
    optimizer = AdamP([weight], rounding="nearest" if way == "group" else "stochastic")
    run_steps(optimizer, [[torch.ones(3, 3)]])
    saved = copy.deepcopy(optimizer.state_dict())
    weight.grad, weight.data = None, weight.data.half()
    if way == "group":
        optimizer.param_groups[0]["rounding"] = "stochastic"
    elif way == "checkpoint":
        optimizer = AdamP([weight])
    weight.grad = torch.ones_like(weight)
    refused = partial(optimizer.load_state_dict, saved) if way == "checkpoint" else optimizer.step
    with pytest.raises(ValueError, match=r'is float16, and rounding="stochastic"'):
        refused()
    assert len(optimizer.state) == (way != "checkpoint")


@pytest.mark.parametrize("flag", ["capturable", "differentiable"])
@pytest.mark.parametrize("options", [{"rounding": "kahan"}, {"state_dtype": "bfloat16"}], ids=str)
def test_precision_that_a_flag_excludes_is_refused(flag, options):
    weight = nn.Parameter(torch.ones(3, 3, dtype=torch.bfloat16))
    with pytest.raises(RuntimeError, match=f"{flag}=True exclude each other"):
        AdamP([weight], **options, **{flag: True})


def test_8_bits_without_torchao_say_what_to_install():
    code = (
        "import sys, torch; sys.modules['torchao'] = None\n"
        "import hf_adamp\n"
        "try: hf_adamp.AdamP([torch.nn.Parameter(torch.ones(2, 2))], state_dtype='8bit')\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert 'pip install "hf-adamp[low-precision]"' in done.stdout
