"""What a step costs on CUDA, counted without a GPU: `python -m tests.benchmarks.cuda_counts`.

Launches are counted on the CPU, kernels replaced by counters: ours, and torch operations that are
no mere views. Bytes are counted load by load and store by store, masks heeded, in Triton's
interpreter (in a process of its own). Registers and spills are those of the compiled kernels.
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
from hf_adamp.optim import backends, step
from hf_adamp.optim.backends import cuda_decision, cuda_triton
from tests.pages import DOCS, Section, print_or_write

SECTION = Section(DOCS / "cuda.md", "cuda-counts")
CAPABILITIES = (80, 90)
KERNELS = ("accumulate", "add_parts", "total", "decide", "apply")
DECIDES = ("total", "decide")
INTEGERS = ("first_task", "end_task", "stride", "slots")
POINTERS = {
    **dict.fromkeys(("table", "lr", "stats", "written", "partials", "shifts"), "*fp32"),
    **dict.fromkeys(("weights", "addresses", "splits"), "*i64"),
    **dict.fromkeys(("guesses", "written_as", "done"), "*i8"),
    **dict.fromkeys(("channel", "layer"), "*u8"),
    "tasks": "*i32",
}
# The decision's kernels have one number of these a weight or segment, where the others have one.
DECISION = {
    **dict.fromkeys(("limit", "eps", "totals", "decay", "projected_decay", "shift"), "*fp32"),
    **dict.fromkeys(("offsets", "segment_weight", "weight_segments"), "*i64"),
    "segments": "i32",
}
# What launches nothing: views, memory that is only asked for, numbers on the host.
FREE = re.compile(
    r"profiler|aten\.(view|slice|select|unbind|expand|unsqueeze|reshape|detach|alias|as_strided"
    r"|empty|new_empty|promote_types|lift_fresh|scalar_tensor|_local_scalar_dense)"
)


def compiled(kernel, capability, *, tile=4096, **constants):
    """A kernel compiled ahead of time, without a GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(cuda_triton._kernels(kernel), kernel)
    pointers = {**POINTERS, **(DECISION if kernel in DECIDES else {})}
    signature = {
        name: "constexpr" if name in constants
        else "i32" if name in INTEGERS else pointers.get(name, "fp32")
        for name in function.arg_names
    }  # fmt: skip
    source = ASTSource(function, signature, constants)
    warps = tile // cuda_triton._WARP_ELEMENTS
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": warps})


def constants_of(kernel, *, aligned, widths, tile=4096, dtype="float32", kind="adam", **changes):
    """What a kernel of a step is specialised on."""
    tl = cuda_triton._kernels().tl
    if kernel == "add_parts":
        return {"BLOCK": cuda_triton._PARTS}
    if kernel in DECIDES:
        return {"BLOCK": cuda_decision._BLOCK, "HAS_SEGMENTS": True}
    constants = {
        "TYPE": getattr(tl, dtype),
        "KIND": ("adam", "momentum", "plain").index(kind),
        "AHEAD": False,
        "SOURCE": 0,
        "LR_ON_DEVICE": False,
        "ALIGNED": aligned,
        "WIDTHS": sum({1 << cuda_triton._power(width, tile) for width in widths}),
        "TILE": tile,
        "tile": tile,
        **changes,
    }
    return constants | ({"CHUNK": 8} if kernel == "apply" else {})


def registers_and_spills(binary):
    """Registers a thread, and bytes a thread that had to go to memory for want of them."""
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(binary.asm["cubin"])
        cubin.flush()
        usage = subprocess.run(
            [tools / "cuobjdump", "-res-usage", cubin.name],
            capture_output=True,
            text=True,
            check=True,
        )
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr).groups()
    return int(registers), int(stack)


# What a step finds, and whether it projects; one after the other.
VIEWS = {"first step": 1, "view as before": 1, "no longer projected": 0, "projected again": 1}


class Launches(TorchDispatchMode):
    """Counts torch operations that would launch a kernel, and where they came from."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()
        self.stage = "other"

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not FREE.match(str(func)):
            self.counts[self.stage] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def replaced(*changes):
    """Attributes set for a while: `(owner, name, value)`."""
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in kept:
            setattr(owner, name, value)


def count_launches(shapes, *, steps=2):
    """Launches of the last of some steps: by kernel, and of torch's operations by stage.

    Weights with rows get weight decay, the others none: the usual two param groups.
    """
    weights = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    groups = [
        {"params": [w for w in weights if w.ndim > 1]},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = hf_adamp.AdamP(groups, weight_decay=0.1, fused=True)
    ours, torchs = Counter(), Launches()

    def stage(name, function):
        def wrapped(*args, **kwargs):
            torchs.stage = name
            try:
                return function(*args, **kwargs)
            finally:
                torchs.stage = "other"

        return wrapped

    section = step._Section
    changes = [
        (backends, "_FUSED", (cuda_triton,)),
        (cuda_triton, "_DEVICE", "cpu"),
        (cuda_triton, "run_kernel", lambda kernel, *rest, **arguments: ours.update([kernel])),
        # On the host, unless capturable; see docs/cuda.md.
        (step, "_count_step", stage("step counts", step._count_step)),
        (section, "finish", stage("decide", section.finish)),
        (section, "total", stage("decide", section.total)),
    ]
    with replaced(*changes):
        for _ in range(steps):
            ours.clear()
            torchs.counts.clear()
            for weight in weights:
                weight.grad = torch.ones_like(weight)
            with torchs:
                optimizer.step()
    return ours, torchs.counts


def count_bytes():
    """Floats of traffic an element, by what the step is: run with TRITON_INTERPRET=1."""
    from triton.runtime.interpreter import InterpreterBuilder

    moved = Counter()

    def counting(plain, mask_at):
        def wrapped(self, ptrs, *rest):
            mask = rest[mask_at].data
            moved["bytes"] += int(mask.sum()) * ptrs.get_element_ty().primitive_bitwidth // 8
            return plain(self, ptrs, *rest)

        return wrapped

    builder = InterpreterBuilder
    changes = [
        (backends, "_FUSED", (cuda_triton,)),
        (cuda_triton, "_DEVICE", "cpu"),
        (builder, "create_masked_load", counting(builder.create_masked_load, 0)),
        (builder, "create_masked_store", counting(builder.create_masked_store, 1)),
    ]
    figures = {}
    draw = torch.Generator().manual_seed(0)
    with replaced(*changes):
        for name, shape, dtype in (
            ("float32, rows of 768", (16, 768), torch.float32),
            ("float32, rows of 4608", (3, 4608), torch.float32),
            ("float32, rows of 11008 (split)", (2, 11008), torch.float32),
            ("bfloat16, rows of 768", (16, 768), torch.bfloat16),
            ("float32, vector", (4096,), torch.float32),
        ):
            weight = nn.Parameter(torch.randn(shape, generator=draw).to(dtype))
            optimizer = hf_adamp.AdamP([weight], lr=1e-5, fused=True)
            for view, projects in VIEWS.items():
                w = weight.detach().float().reshape(-1, shape[-1])
                noise = torch.randn(w.shape, generator=draw)
                along = (noise * w).sum(1, keepdim=True) / (w * w).sum(1, keepdim=True)
                grad = noise - along * w if projects else w
                weight.grad = grad.reshape(shape).to(dtype)
                moved.clear()
                optimizer.step()
                figures.setdefault(name, {})[view] = moved["bytes"] / weight.numel()
    return figures


def traffic():
    """`count_bytes` in a process of its own."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.cuda_counts", "--bytes"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def tables():
    """The tables of docs/cuda.md."""
    lines = [
        f"| Weights | {' | '.join(KERNELS)} | torch: decide | torch: other | all |",
        f"|---|{'---|' * (len(KERNELS) + 3)}",
    ]
    for name, shapes in (
        ("3 matrices, 2 vectors", [(8, 16)] * 3 + [(16,)] * 2),
        ("300 matrices, 200 vectors", [(8, 16)] * 300 + [(16,)] * 200),
        ("the same, some rows odd", [(8, 16), (8, 15)] * 150 + [(16,), (15,)] * 100),
        ("the same, some rows split", [(8, 16), (2, 11008)] * 150 + [(16,)] * 200),
    ):
        ours, torchs = count_launches(shapes)
        cells = [ours[kernel] for kernel in KERNELS]
        cells += [torchs["decide"], torchs["other"]]
        lines.append(f"| {name} | {' | '.join(map(str, [*cells, sum(cells)]))} |")

    lines += ["", f"| Bytes an element | {' | '.join(VIEWS)} |", "|---|---|---|---|---|"]
    for name, views in traffic().items():
        lines.append(f"| {name} | {' | '.join(f'{value:.1f}' for value in views.values())} |")

    lines += ["", "| Kernel | Weights | Loads | registers, spilled bytes: sm_80 | sm_90 |"]
    lines.append("|---|---|---|---|---|")
    for kernel, dtype, arguments in compilations():
        cells = []
        for capability in CAPABILITIES:
            binary = compiled(kernel, capability, **constants_of(kernel, dtype=dtype, **arguments))
            cells.append("{}, {}".format(*registers_and_spills(binary)))
        loads = "by four" if arguments["aligned"] else "by one"
        loads += (
            f", tile {arguments.get('tile', 4096)}" if kernel in ("accumulate", "apply") else ""
        )
        lines.append(f"| {kernel} | {dtype} | {loads} | {' | '.join(cells)} |")
    made = "`python -m tests.benchmarks.cuda_counts --write`"
    return "\n".join([*lines, "", f"Triton {version('triton')}; made by {made}."])


def compilations():
    """Kernels, dtypes and what they are specialised on: those of BERT and of ResNet-50."""
    bert = {"aligned": True, "widths": (768, 3072)}
    resnet = {"aligned": True, "widths": (64, 256, 512, 1024, 2048, 4608), "tile": 8192}
    odd = {"aligned": False, "widths": (147, 768, 3072)}
    for kernel in ("accumulate", "apply"):
        for arguments in (bert, resnet, odd):
            for dtype in ("float32", "bfloat16"):
                yield kernel, dtype, arguments
    for kernel in ("add_parts", *DECIDES):
        yield kernel, "float32", bert


if __name__ == "__main__":
    if "--bytes" in sys.argv:
        print(json.dumps(count_bytes()))
    else:
        print_or_write(tables, SECTION, __doc__.partition(":")[0])
