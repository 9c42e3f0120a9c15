"""The CUDA kernels without a GPU: interpreted, compiled ahead of time, counted, refused."""

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from torch import nn

from hf_adamp import AdamP
from hf_adamp.optim import backends
from hf_adamp.optim.backends import cuda
from tests.benchmarks import cuda_counts
from tests.tables.optimizer_options import ADAMP
from tests.training import build, run_steps

ROOT = Path(__file__).parents[3]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")


@needs_triton
@pytest.mark.slow
def test_kernels_in_the_interpreter():
    """Every test of interpreted_triton.py, in a process whose triton interprets."""
    if Version(version("triton")) < Version("3.3"):
        pytest.skip("the interpreter of Triton 3.2 does not run with a new NumPy")
    file = Path(__file__).with_name("interpreted_triton.py")
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
@pytest.mark.parametrize("kernel", ["measure", "write"])
def test_kernels_compile_without_spilling(kernel, aligned, capability):
    constants = cuda_counts.constants_of(kernel, aligned=aligned, AHEAD=True)
    binary = cuda_counts.compiled(kernel, capability, **constants)
    registers, spilled = cuda_counts.registers_and_spills(binary)
    assert spilled == 0
    assert registers * 32 * constants["num_warps"] <= 65536
    assert ("ld.global.v4" in binary.asm["ptx"]) == aligned


@needs_triton
def test_kernels_round_bfloat16_and_add_nothing_atomically():
    changes = {"ROUNDING": 1, "NOISY": True}
    constants = cuda_counts.constants_of("write", dtype="bfloat16", **changes)
    ptx = cuda_counts.compiled("write", 90, **constants).asm["ptx"]
    assert "cvt.rn.bf16" in ptx
    for wrong in ("cvt.rz.bf16", "atom", "red.global", "sqrt.approx", ".f64"):
        assert wrong not in ptx


@needs_triton
def test_decision_compiles_without_spilling():
    binary = cuda_counts.compiled("decide", 90, **cuda_counts.constants_of("decide"))
    assert cuda_counts.registers_and_spills(binary)[1] == 0


@needs_triton
def test_launches_do_not_depend_on_the_number_of_weights():
    launches = cuda_counts.interpreted("launches")
    few, many, widths = launches.values()
    assert few == many
    assert few[0] == {"measure": 2, "decide": 1, "write": 1}
    assert widths[0] == {"measure": 5, "decide": 1, "write": 4}


def test_kernels_are_the_default_where_a_gpu_has_run_them(monkeypatch):
    assert cuda.TRITON.is_default_for("cuda")
    assert not any(cuda.TRITON.is_default_for(device) for device in ("cpu", "xpu"))
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert not cuda.TRITON.is_default_for("cuda")


def test_kernels_that_cannot_be_compiled_are_passed_over_with_a_warning(monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch.cuda, "device", fail)
    reason = cuda._failure.__wrapped__(torch.device("cuda", 0))
    assert reason == "cannot run a Triton kernel here (RuntimeError: Failed to find C compiler)"
    (warning,) = caplog.messages
    assert "Failed to find C compiler" in warning
    assert "cuda:0" in warning


def test_kernels_are_for_cuda():
    # On a CPU they are no answer, whatever else is missing.
    weight = nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    optimizer = build(ADAMP, [weight], fused=True)
    with pytest.raises(RuntimeError, match="triton is for CUDA, not cpu"):
        run_steps(optimizer, [[torch.ones(2, 3, dtype=torch.float64)]])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": torch.float64}, "has no kernel for torch.float64"),
        ({"lr": torch.tensor(0.1)}, "takes lr as a tensor only with capturable=True"),
        ({"betas": (torch.tensor(0.9), torch.tensor(0.99))}, "takes betas as floats only"),
        ({"layout": "transposed"}, "row-major"),
    ],
    ids=["dtype", "lr", "betas", "layout"],
)
def test_kernels_say_what_they_cannot_serve(monkeypatch, changes, reason):
    monkeypatch.setattr(cuda, "_device_refusal", lambda device: None)
    monkeypatch.setattr(backends, "BACKENDS", (cuda.TRITON,))
    values = torch.ones(3, 4, dtype=changes.pop("dtype", torch.float32))
    weight = nn.Parameter(values.t() if changes.pop("layout", None) else values)
    optimizer = AdamP([weight], **changes, fused=True)
    weight.grad = torch.ones_like(weight, memory_format=torch.contiguous_format)
    with pytest.raises(RuntimeError, match=f"fused=True cannot serve .*triton .*{reason}"):
        optimizer.step()
    assert torch.equal(weight.detach(), torch.ones_like(weight))
