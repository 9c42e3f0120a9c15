"""The CUDA kernels without a GPU: interpreted, compiled ahead of time, counted, refused."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hf_adamp.optim import adamp, backends
from hf_adamp.optim.backends import cuda_triton
from hf_adamp.optim.bucket import AdamRule, Bucket
from tests.benchmarks import cuda_counts

ROOT = Path(__file__).parents[2]
RULE = AdamRule(0.1, 0.9, 0.99, 1e-8, 0.0, 0.1, 0.1, False, False, False)
needs_triton = pytest.mark.skipif(
    cuda_triton._missing(torch.device("cpu")) is not None, reason="needs triton"
)


def bucket(*, dtype=torch.float32, grad_dtype=None, state_dtype=torch.float32, weight=None, **rule):
    weight = torch.zeros(4, 8, dtype=dtype) if weight is None else weight
    grad = torch.zeros(4, 8, dtype=grad_dtype or dtype)
    moments = tuple([torch.zeros(4, 8, dtype=state_dtype)] for _ in range(2))
    return Bucket([weight], [grad], moments, [torch.zeros(())], replace(RULE, **rule))


@needs_triton
@pytest.mark.slow
def test_kernels_in_the_interpreter():
    """Every test of interpreted_cuda_triton.py, in a process whose triton interprets."""
    file = Path(__file__).with_name("interpreted_cuda_triton.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout


@needs_triton
@pytest.mark.parametrize("capability", cuda_counts.CAPABILITIES)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("kernel", ["accumulate", "apply"])
def test_kernels_compile_without_spilling(kernel, aligned, capability):
    tile = 8192 if aligned else 4096
    constants = cuda_counts.constants_of(
        kernel, aligned=aligned, widths=(64, 1024, tile), tile=tile, AHEAD=True, SOURCE=1
    )
    binary = cuda_counts.compiled(kernel, capability, **constants)
    registers, spilled = cuda_counts.registers_and_spills(binary)
    assert spilled == 0
    assert registers * 32 * (tile // cuda_triton._WARP_ELEMENTS) <= 65536
    assert ("ld.global.v4" in binary.asm["ptx"]) == aligned


@needs_triton
@pytest.mark.parametrize("capability", cuda_counts.CAPABILITIES)
def test_kernels_round_bfloat16_and_add_nothing_atomically(capability):
    constants = cuda_counts.constants_of(
        "accumulate", aligned=True, widths=(1024,), dtype="bfloat16"
    )
    ptx = cuda_counts.compiled("accumulate", capability, **constants).asm["ptx"]
    assert "cvt.rn.bf16" in ptx
    assert "cvt.rz.bf16" not in ptx
    assert "atom" not in ptx
    assert "red.global" not in ptx
    assert "sqrt.approx" not in ptx


@needs_triton
@pytest.mark.parametrize("capability", cuda_counts.CAPABILITIES)
@pytest.mark.parametrize("kernel", ["add_parts", *cuda_counts.DECIDES])
def test_small_kernels_compile_without_spilling(kernel, capability):
    constants = cuda_counts.constants_of(kernel, aligned=True, widths=())
    binary = cuda_counts.compiled(kernel, capability, **constants)
    assert cuda_counts.registers_and_spills(binary)[1] == 0


@needs_triton
def test_launches_do_not_depend_on_the_number_of_weights():
    few, many = (
        cuda_counts.count_launches([(8, 16), (4, 15), (16,), (7,), (2, 9000)] * times)
        for times in (1, 20)
    )
    assert few == many
    ours, _ = few
    assert ours == {"accumulate": 4, "add_parts": 1, "total": 1, "decide": 1, "apply": 2}


class Waits(TorchDispatchMode):
    """Raises where the host would wait for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        assert not any(op in name for op in ("_local_scalar_dense", "nonzero", "masked_select")), (
            f"{name} reads from the device"
        )
        return func(*args, **(kwargs or {}))


@needs_triton
def test_capturable_step_reads_nothing_back(monkeypatch):
    monkeypatch.setattr(cuda_triton, "_DEVICE", "cpu")
    monkeypatch.setattr(backends, "_FUSED", (cuda_triton,))
    launched = []
    monkeypatch.setattr(cuda_triton, "run_kernel", lambda kernel, *_, **__: launched.append(kernel))
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: pytest.fail("tolist reads"))
    tensors = [[torch.ones(4, 8), torch.ones(8)] for _ in range(4)]
    counts = [torch.tensor(0.0) for _ in range(2)]
    options = {"beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1, "eps": 1e-8, "delta": 0.1}
    flags = {"wd_ratio": 0.1, "nesterov": False, "maximize": False, "fused": True}
    with Waits():
        adamp(*tensors, counts, lr=torch.tensor(0.1), capturable=True, **options, **flags)
    assert launched == ["accumulate", "total", "decide", "apply"]


def test_tasks_of_a_weight_beyond_2_31_elements_cover_it_once(monkeypatch):
    columns = 2**31 + 5
    parts = list(cuda_triton._tasks(1, columns, 4096, 7))
    assert len(parts) == -(-columns // 4096)
    assert parts[-1] == (0, len(parts) - 1, 7 + len(parts) - 1)
    rows = list(cuda_triton._tasks(2**20, 4096, 4096, -1))
    assert rows[-1] == (2**20 - 1, 0, -1)
    assert len(rows) == 2**20


REFUSED = {
    "cpu": ({}, "is for CUDA, not cpu"),
    "float64": ({"dtype": torch.float64}, "has no kernel for torch.float64 weights"),
    "grad": ({"grad_dtype": torch.bfloat16}, "with torch.bfloat16 gradients"),
    "state": ({"state_dtype": torch.bfloat16}, "needs state in float32, not torch.bfloat16"),
    "betas": ({"beta1": torch.tensor(0.9), "beta2": torch.tensor(0.9)}, "betas as floats only"),
    "lr": ({"lr": torch.zeros((), device="meta")}, "a tensor on cpu, not on meta"),
    "layout": ({"weight": torch.zeros(8, 4).t()}, "the same dense, row-major layout"),
    "capturable": ({"capturable": True, "counts": torch.float64}, "all step counts on cpu"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_kernels_cannot_serve_is_refused(name, monkeypatch):
    arguments, message = REFUSED[name]
    arguments = dict(arguments)
    counts = arguments.pop("counts", torch.float32)
    if name != "cpu":
        monkeypatch.setattr(cuda_triton, "_DEVICE", "cpu")
    refused = replace(bucket(**arguments), state_steps=[torch.zeros((), dtype=counts)])
    assert message in (cuda_triton.refusal(refused) or "")


def test_subclasses_of_tensors_are_refused(monkeypatch):
    class Wrapped(torch.Tensor):
        pass

    monkeypatch.setattr(cuda_triton, "_DEVICE", "cpu")
    weight = torch.zeros(4, 8).as_subclass(Wrapped)
    assert "memory that a Wrapped may not have" in cuda_triton.refusal(bucket(weight=weight))


def test_missing_triton_is_refused(monkeypatch):
    monkeypatch.setattr(cuda_triton, "_DEVICE", "cpu")
    monkeypatch.setattr(cuda_triton.importlib.util, "find_spec", lambda name: None)
    cuda_triton._missing.cache_clear()
    try:
        assert cuda_triton.refusal(bucket()) == "needs triton, which is not installed"
    finally:
        cuda_triton._missing.cache_clear()


def test_old_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(cuda_triton.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    cuda_triton._missing.cache_clear()
    try:
        reason = cuda_triton._missing(torch.device("cuda", 0))
        assert reason == "needs compute capability 8.0; cuda:0 has 7.5"
    finally:
        cuda_triton._missing.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_fused_on_a_gpu_is_served_by_the_kernels():
    weight = nn.Parameter(torch.randn(4, 8, device="cuda"))
    weight.grad = torch.randn_like(weight)
    served = replace(bucket(), params=[weight], grads=[weight.grad])
    assert backends.choose(served, backends.Flags(fused=True)) is cuda_triton
