"""Runs of steps that several test files compare: ours, the reference's, adamp 0.3.0's."""

import torch

from tests.tolerances import assert_close


def build(family, weights, path=None, **kwargs):
    """Our optimizer over these weights (a dictionary by name or a list)."""
    params = list(weights.values()) if isinstance(weights, dict) else list(weights)
    flags = path.flags if path is not None else {}
    return family.cls(params, **{**family.base, **kwargs, **flags})


def set_grads(weights, grads):
    """Hand each weight a gradient of its own, or none."""
    for weight, grad in zip(weights, grads, strict=True):
        weight.grad = None if grad is None else grad.to(weight.device, weight.dtype, copy=True)


def params_of(optimizer):
    return [param for group in optimizer.param_groups for param in group["params"]]


def run_steps(optimizer, grads_of_steps):
    """One step for each list of gradients."""
    for grads in grads_of_steps:
        set_grads(params_of(optimizer), grads)
        optimizer.step()


def snapshot(optimizer):
    """Copies of all weights and of the state of each."""
    params = params_of(optimizer)
    return (
        [param.detach().clone() for param in params],
        [
            {k: v.detach().clone() if torch.is_tensor(v) else v for k, v in state.items()}
            for state in (optimizer.state.get(param, {}) for param in params)
        ],
    )


def assert_same(family, actual, expected, *, names, state_dtype=None):
    """Weights and state of two snapshots agree within the tolerance table; no name, no test."""
    for name, weight, wanted in zip(names, actual[0], expected[0], strict=True):
        if name is not None:
            assert_close(weight, wanted.reshape(weight.shape), what=f"weight {name}")
    for name, state, wanted in zip(names, actual[1], expected[1], strict=True):
        for key in family.moments if name is not None else ():
            assert (key in state) == (key in wanted), f"{name}: state {key}"
            if key in state:
                value = wanted[key].reshape(state[key].shape)
                assert_close(state[key], value, dtype=state_dtype, what=f"{key} of {name}")
        if "step" in wanted:
            assert float(state["step"]) == float(wanted["step"]), f"step of {name}"


def assert_identical(actual, expected):
    """Weights and state of two snapshots agree bit for bit."""
    for weight, wanted in zip(actual[0], expected[0], strict=True):
        assert torch.equal(weight, wanted)
    for state, wanted in zip(actual[1], expected[1], strict=True):
        assert state.keys() == wanted.keys()
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(wanted[key])), key
