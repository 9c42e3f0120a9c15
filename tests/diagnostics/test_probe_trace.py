"""Nothing that a probe does is left in the model, its batch or torch."""

import copy
import functools
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from hf_adamp import probe
from tests.diagnostics.tiny_models import ALL, LOOKING_INSIDE, build


def look(model):
    """What a model is, read by the attributes that torch documents rather than by a walk."""
    modules = dict(model.named_modules())
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    configs = {n: m.config.to_dict() for n, m in modules.items() if hasattr(m, "config")}
    return {
        "modules": {n: (id(m), type(m), m.training) for n, m in modules.items()},
        "attributes": {
            n: {k: id(v) for k, v in vars(m).items() if k != "training"} for n, m in modules.items()
        },
        "containers": {
            (n, k): [(key, id(item)) for key, item in v.items()]
            for n, m in modules.items()
            for k, v in vars(m).items()
            if isinstance(v, dict)
        },
        "tensors": {
            n: (id(t), t.data_ptr(), t.dtype, t._version, t.requires_grad, id(t.grad))
            for n, t in tensors.items()
        },
        "configs": copy.deepcopy(configs),
    }


def noise():
    numpy = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), numpy[1].tolist(), numpy[2]


def outputs(result):
    if isinstance(result, torch.Tensor):
        return [result]
    items = result.values() if isinstance(result, dict) else result
    kinds = (dict, tuple, list, torch.Tensor)
    return [t for item in items if isinstance(item, kinds) for t in outputs(item)]


def run(model, inputs):
    torch.manual_seed(1)
    with torch.no_grad():
        return outputs(model(**inputs))


def assert_same_outputs(model, twin, inputs):
    found, expected = run(model, inputs), run(twin, inputs)
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("name", ALL)
def test_probe_leaves_no_trace_in_an_architecture(name):
    torch.manual_seed(0)
    model, inputs = build(name)
    twin, given = copy.deepcopy(model), copy.deepcopy(inputs)
    # First without a forward pass before it, then behind one that has installed its hooks.
    for _ in range(2):
        before, noise_before = look(model), noise()
        probe(model, inputs, gradients=1)
        after = look(model)
        for part, value in before.items():
            assert after[part] == value, part
        assert noise() == noise_before
        assert torch.get_default_dtype() is torch.float32
        for key, tensor in given.items():
            assert inputs[key].dtype is tensor.dtype
            assert torch.equal(inputs[key], tensor)
        assert_same_outputs(model, twin, inputs)
    assert all(t.grad is None for t in model.parameters())


@pytest.mark.parametrize("name", LOOKING_INSIDE)
def test_hidden_states_are_the_same_after_a_probe(name):
    torch.manual_seed(0)
    model, inputs = build(name)
    twin = copy.deepcopy(model)
    probe(model, inputs, gradients=1)
    inputs = {**inputs, "output_hidden_states": True}
    assert_same_outputs(model, twin, inputs)


class Resisting(nn.Module):
    """Runs in training only, and its weights are too small to measure."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU())
        self.last = nn.Linear(8, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=1e-10)

    def forward(self, x, use_cache=True):
        if not self.training:
            raise ValueError("trains only")
        return self.last(self.body(x))


@pytest.mark.parametrize("training", [False, True])
def test_probe_leaves_no_trace_in_a_model_that_it_has_to_coax(training):
    model = Resisting().train(training)
    model.body[2].eval()
    twin, x = copy.deepcopy(model), torch.randn(9, 6)
    before, noise_before = look(model), noise()
    report = probe(model, {"x": x}, gradients=2)
    assert report.weights["body.0.weight"].granularity == "row"
    assert look(model) == before
    assert noise() == noise_before
    for ours, other in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(ours, other)


class Writer(nn.Module):
    """Writes, in its forward pass, wherever it can reach."""

    def __init__(self, write):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("history", torch.zeros(3), persistent=False)
        self.config = SimpleNamespace(seen=0, nested={"list": [1, [2]]}, use_cache=True)
        self.cache = {"deep": [torch.zeros(2), (torch.zeros(2),)]}
        self.seen = {1}
        self.array = np.zeros(3)
        self.rng = torch.Generator().manual_seed(3)
        self.write = write

    def forward(self, x):
        self.write(self, x)
        # Like any weight in front of a norm over all features.
        y = x @ self.weight.T
        return y / y.norm(dim=-1, keepdim=True)


def counting():
    """A hook that counts in a variable that it closes over, and keeps what it has seen."""
    count, outputs = 0, []

    def hook(module, args, output):
        nonlocal count
        count += 1
        outputs.append(output)

    hook.state = lambda: (count, len(outputs))
    return hook


def write_into_tensors(module, x):
    module.steps += 1
    module.history[0] = x.detach().mean()
    module.cache["deep"][0].add_(1)
    module.cache["deep"][1][0].add_(1)
    x.detach().mul_(2)


WRITES = {
    "new attribute": lambda m, x: setattr(m, "flag", True),
    "removed attribute": lambda m, x: m.__dict__.pop("seen", None),
    "config": lambda m, x: setattr(m.config, "seen", m.config.seen + 1),
    "list in a config": lambda m, x: m.config.nested["list"][1].append(3),
    "cache in a cache": lambda m, x: m.cache["deep"].append(m.weight * 1),
    "set": lambda m, x: m.seen.add(len(m.seen)),
    "array": lambda m, x: m.array.__iadd__(1),
    "buffer": lambda m, x: m.register_buffer(f"buffer{len(m._buffers)}", x.detach()),
    "other buffer": lambda m, x: setattr(m, "history", m.history + 1),
    "tensors": write_into_tensors,
    "forward hook": lambda m, x: m.register_forward_hook(lambda *a: None),
    "backward hook": lambda m, x: m.register_full_backward_hook(lambda *a: None),
    "state dict hook": lambda m, x: m._register_state_dict_hook(lambda *a: None),
    "training": lambda m, x: m.train(),
    "frozen": lambda m, x: m.weight.requires_grad_(True),
    "dtype": lambda m, x: m.double(),
    "submodule": lambda m, x: m.add_module(f"new{len(m._modules)}", nn.Identity()),
    "own generator": lambda m, x: torch.randn(2, generator=m.rng),
    "noise": lambda m, x: (torch.rand(2), random.random(), np.random.rand()),
    "method": lambda m, x: setattr(m, "extra_repr", lambda: "patched"),
}


def held(module):
    """Everything of a `Writer`, by value."""
    return {
        "attributes": {k: id(v) for k, v in vars(module).items()},
        "hooks": [len(v) for k, v in vars(module).items() if "hooks" in k],
        "buffers": {k: (id(b), b.dtype, b.tolist()) for k, b in module.named_buffers()},
        "config": copy.deepcopy(vars(module.config)),
        "cache": (len(module.cache["deep"]), module.cache["deep"][0].tolist()),
        "cached tuple": module.cache["deep"][1][0].tolist(),
        "set": set(module.seen),
        "array": module.array.tolist(),
        "weight": (id(module.weight), module.weight.dtype, module.weight.tolist()),
        "requires_grad": module.weight.requires_grad,
        "modules": list(module._modules),
        "training": module.training,
        "generator": module.rng.get_state().tolist(),
        "repr": module.extra_repr(),
    }


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("training", [False, True])
def test_what_a_forward_pass_writes_is_gone_after_the_probe(name, training):
    module = Writer(WRITES[name]).train(training)
    x = torch.randn(5, 6)
    given = x.clone()
    before, noise_before = held(module), noise()
    weight = probe(module, x, gradients=2).weights["weight"]
    # Writing has not misled it either.
    assert weight.granularity == "tensor"
    assert held(module) == before
    assert noise() == noise_before
    assert x.dtype is torch.float32
    assert torch.equal(x, given)


SEEN = []


def test_writes_of_one_pass_do_not_reach_the_next():
    def write(module, x):
        # A list that the function closed over would be put back as well.
        SEEN.append((int(module.steps), float(module.history[0]), len(module.cache["deep"])))
        module.steps += 1
        module.history[0] = 7
        module.cache["deep"].append(1)

    probe(Writer(write), torch.randn(5, 6), gradients=1)
    assert len(SEEN) > 4
    assert set(SEEN) == {(0, 0.0, 2)}


def test_hooks_see_the_probe_and_forget_it():
    model, hook = nn.Sequential(nn.Linear(4, 4)), counting()
    model[0].register_forward_hook(hook)
    probe(model, torch.randn(3, 4), gradients=1)
    assert hook.state() == (0, 0)
    model(torch.randn(3, 4))
    assert hook.state() == (1, 1)


def test_forward_that_closes_over_the_model_is_probed():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.LayerNorm(4, bias=False))
    inner = model.forward
    expected = probe(model, torch.randn(3, 4), gradients=1).granularities
    model.forward = lambda x: inner(2 * x)
    patched = model.forward
    report = probe(model, torch.randn(3, 4), gradients=1)
    assert report.granularities == expected
    assert report.weights["0.weight"].effect > 0
    assert model.forward is patched


def test_module_hidden_in_a_list_runs_in_float64_and_is_given_back():
    class Student(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = nn.Linear(4, 4, bias=False)
            self.teacher = [nn.Linear(4, 4)]

        def forward(self, x):
            return self.own(self.teacher[0](x))

    model = Student()
    weight = model.teacher[0].weight
    assert list(probe(model, torch.randn(3, 4), gradients=1).weights) == ["own.weight"]
    assert model.teacher[0].weight is weight
    assert model(torch.randn(3, 4)).dtype is torch.float32


@functools.lru_cache
def positions(length):
    """Keyed by its length alone, in whatever dtype is the default."""
    return torch.arange(length) / torch.tensor(length).sqrt()


class Positions(nn.Linear):
    def forward(self, x):
        return super().forward(x) * positions(x.shape[-1])


def test_functions_with_a_memory_remember_nothing_of_the_probe():
    model = Positions(6, 6, bias=False)
    x = torch.randn(3, 6)
    expected = model(x)
    positions.cache_clear()
    probe(model, x, gradients=1)
    assert model(x).dtype is torch.float32
    assert torch.equal(model(x), expected)
    assert positions(6).dtype is torch.float32


def test_weight_that_a_pass_renormalizes_is_put_back():
    model = nn.Sequential(nn.Embedding(8, 4, max_norm=0.5), nn.Linear(4, 4))
    before, version = model[0].weight.detach().clone(), model[0].weight._version
    first = probe(model, torch.tensor([[1, 2, 3]]), gradients=1)
    assert torch.equal(model[0].weight, before)
    assert model[0].weight._version == version
    assert probe(model, torch.tensor([[1, 2, 3]]), gradients=1).weights == first.weights


def test_seed_of_a_gpu_that_is_not_yet_used_stays(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    probe(nn.Linear(4, 4), torch.randn(3, 4), gradients=1)
    assert seeds == []


@pytest.mark.parametrize(
    "around",
    [
        torch.no_grad,
        torch.inference_mode,
        functools.partial(torch.autocast, "cpu", dtype=torch.bfloat16),
        functools.partial(torch.device, "meta"),
    ],
    ids=["no_grad", "inference_mode", "autocast", "device"],
)
def test_answer_is_the_same_inside_of_a_context(around):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 2))
    x = torch.randn(9, 6)
    expected = probe(model, x, gradients=2)
    with around():
        assert probe(model, x, gradients=2).weights == expected.weights


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_answer_is_the_same_under_another_default_dtype(dtype):
    model, x = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)), torch.randn(9, 6)
    expected = probe(model, x, gradients=2)
    torch.set_default_dtype(dtype)
    try:
        assert probe(model, x, gradients=2).weights == expected.weights
        assert torch.get_default_dtype() is dtype
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.slow
def test_compiled_model_is_probed_eagerly_and_stays_compiled():
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.LayerNorm(8, bias=False))
    compiled = torch.compile(model, backend="eager")
    report = probe(compiled, torch.randn(9, 6), gradients=2)
    assert report.granularities == {"_orig_mod.0.weight": "tensor"}
    assert torch.equal(compiled(torch.ones(1, 6)), model(torch.ones(1, 6)))


def test_model_is_given_back_when_its_forward_fails():
    def write(module, x):
        module.steps += 1
        module.flag = True
        raise RuntimeError("in the middle")

    module = Writer(write)
    before = held(module)
    with pytest.raises(RuntimeError, match="in the middle"):
        probe(module, torch.randn(5, 6))
    assert held(module) == before
