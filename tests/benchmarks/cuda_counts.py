"""What a step costs on CUDA, counted without a GPU: `python -m tests.benchmarks.cuda_counts`.

Launches are counted on the CPU: our kernels, and torch operations that are no mere views. Bytes are
counted load by load and store by store, masks heeded. Both in Triton's interpreter, in a process of
its own. Registers and spills are those of the compiled kernels.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import hf_adamp
from hf_adamp.optim import backends
from hf_adamp.optim.backends import cuda
from tests.pages import DOCS, Section, print_or_write

SECTION = Section(DOCS / "cuda.md", "cuda-counts")
CAPABILITIES = (80, 90)
KERNELS = ("measure", "decide", "write")
INTEGERS = ("first_task", "end_task", "stride", "weights")
POINTERS = {
    **dict.fromkeys(("tasks", "addresses", "seeds", "offsets", "owners"), "*i64"),
    **dict.fromkeys(("done", "channels", "layers"), "*i8"),
}
# What launches nothing: views, memory that is only asked for, numbers on the host.
FREE = re.compile(
    r"profiler|aten\.(view|slice|select|unbind|expand|unsqueeze|reshape|detach|alias|as_strided"
    r"|empty|new_empty|promote_types|lift_fresh|scalar_tensor|_local_scalar_dense)"
)
# What a step finds, one after the other; gradients as in tests/weights.py.
VIEWS = ("radial", "channel", "layer")


def compiled(kernel, capability, **constants):
    """A kernel compiled ahead of time, without a GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(cuda._kernels(), kernel)
    warps = constants.pop("num_warps", 4)
    signature = {
        name: "constexpr" if name in constants
        else "i32" if name in INTEGERS else POINTERS.get(name, "*fp32")
        for name in function.arg_names
    }  # fmt: skip
    target = GPUTarget("cuda", capability, 32)
    source = ASTSource(function, signature, constants)
    return triton.compile(source, target=target, options={"num_warps": warps})


def constants_of(kernel, *, width=1024, aligned=True, dtype="float32", **changes):
    """What a kernel of an Adam step is compiled for."""
    if kernel == "decide":
        return {"BLOCK": cuda._DECIDED_ROWS}
    import triton.language as tl

    return {
        **{"TYPE": getattr(tl, dtype), "MOMENT": tl.float32, "KIND": 0, "AHEAD": False},
        **{"ROUNDING": 0, "NOISY": False, "ALIGNED": aligned},
        **cuda._Launch(0, 1, width, aligned, has_rows=True).constants(),
        **({"TASKS": cuda._WRITTEN_TASKS} if kernel == "write" else {}),
        **changes,
    }


def registers_and_spills(binary):
    """Registers a thread, and bytes a thread that had to go to memory for want of them."""
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(binary.asm["cubin"])
        cubin.flush()
        command = [tools / "cuobjdump", "-res-usage", cubin.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True)
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr).groups()
    return int(registers), int(stack)


class Launches(TorchDispatchMode):
    """Counts torch operations that would launch a kernel."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not FREE.match(str(func)):
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def chosen(*changes):
    """Our kernels serve `fused=True`; other attributes are set for a while too."""
    changes = ((backends, "BACKENDS", (cuda.TRITON, *backends.BACKENDS)), *changes)
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in kept:
            setattr(owner, name, value)


def count_launches(shapes):
    """Launches of a second step: of ours by kernel, and torch's operations.

    Weights with rows get weight decay, the others none: the usual two param groups.
    """
    weights = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    groups = [
        {"params": [w for w in weights if w.ndim > 1]},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = hf_adamp.AdamP(groups, weight_decay=0.1, fused=True)
    ours, torchs = Counter(), Launches()

    class Counted:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *_, **__: ours.update([self.name])

    class Kernels:
        Column, tl = cuda._kernels().Column, cuda._kernels().tl
        measure, decide, write = map(Counted, KERNELS)

    # A mode that sees operations makes kernels that read addresses refuse.
    seen = [(cuda, "memory_refusal", lambda candidate: None)]
    with chosen((cuda, "_kernels", lambda: Kernels), *seen):
        for _ in range(2):
            ours.clear()
            torchs.counts.clear()
            for weight in weights:
                weight.grad = torch.ones_like(weight)
            with torchs:
                optimizer.step()
    return dict(ours), dict(torchs.counts)


def count_bytes():
    """Bytes of traffic an element, by what a step finds: run with TRITON_INTERPRET=1."""
    from triton.runtime.interpreter import InterpreterBuilder

    from tests.weights import make_grads

    moved = Counter()

    def counting(plain, mask_at):
        def wrapped(self, ptrs, *rest):
            mask = rest[mask_at].data
            moved["bytes"] += int(mask.sum()) * ptrs.get_element_ty().primitive_bitwidth // 8
            return plain(self, ptrs, *rest)

        return wrapped

    builder = InterpreterBuilder
    changes = [
        (builder, "create_masked_load", counting(builder.create_masked_load, 0)),
        (builder, "create_masked_store", counting(builder.create_masked_store, 1)),
    ]
    figures = {}
    draw = torch.Generator().manual_seed(0)
    with chosen(*changes):
        for name, shape, dtype in (
            ("float32, rows of 768", (16, 768), torch.float32),
            ("float32, rows of 11008 (walked through)", (2, 11008), torch.float32),
            ("bfloat16, rows of 768", (16, 768), torch.bfloat16),
            ("float32, vector", (4096,), torch.float32),
        ):
            weight = nn.Parameter(torch.randn(shape, generator=draw).to(dtype))
            optimizer = hf_adamp.AdamP([weight], lr=1e-5, fused=True)
            for view in VIEWS:
                (weight.grad,) = make_grads([weight.detach()], view, 0)
                moved.clear()
                optimizer.step()
                figures.setdefault(name, {})[view] = moved["bytes"] / weight.numel()
    return figures


MODELS = (
    ("3 matrices, 2 vectors", [(8, 16)] * 3 + [(16,)] * 2),
    ("300 matrices, 200 vectors", [(8, 16)] * 300 + [(16,)] * 200),
    ("rows of four widths", [(8, 16), (8, 100), (8, 300), (2, 9000)] * 75 + [(16,)] * 200),
)


def interpreted(what):
    """ "launches" or "bytes", counted in the interpreter, in a process of its own."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.cuda_counts", f"--{what}"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def tables():
    """The tables of docs/cuda.md."""
    lines = [f"| Weights | {' | '.join(KERNELS)} | torch's operations |", "|---|---|---|---|---|"]
    for name, (ours, torchs) in interpreted("launches").items():
        cells = [*(ours[kernel] for kernel in KERNELS), sum(torchs.values())]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    titles = "not projected", "row by row", "as a whole"
    lines += ["", f"| Bytes an element | {' | '.join(titles)} |", "|---|---|---|---|"]
    for name, views in interpreted("bytes").items():
        lines.append(f"| {name} | {' | '.join(f'{value:.1f}' for value in views.values())} |")
    lines += ["", "| Kernel | Weights | Loads | registers, spilled bytes: sm_80 | sm_90 |"]
    lines.append("|---|---|---|---|---|")
    for kernel, dtype, aligned in compilations():
        cells = []
        for capability in CAPABILITIES:
            constants = constants_of(kernel, dtype=dtype, aligned=aligned)
            cells.append(
                "{}, {}".format(*registers_and_spills(compiled(kernel, capability, **constants)))
            )
        loads = "by four" if aligned else "by one"
        lines.append(f"| {kernel} | {dtype} | {loads} | {' | '.join(cells)} |")
    made = "`python -m tests.benchmarks.cuda_counts --write`"
    return "\n".join([*lines, "", f"Triton {version('triton')}; made by {made}."])


def compilations():
    """Kernels, dtypes, and whether four elements are loaded at once."""
    for kernel in ("measure", "write"):
        for dtype in ("float32", "bfloat16"):
            yield from ((kernel, dtype, aligned) for aligned in (True, False))
    yield "decide", "float32", False


if __name__ == "__main__":
    if "--launches" in sys.argv:
        print(json.dumps({name: count_launches(shapes) for name, shapes in MODELS}))
    elif "--bytes" in sys.argv:
        print(json.dumps(count_bytes()))
    else:
        print_or_write(tables, SECTION, __doc__.partition(":")[0])
