"""Speed and memory of a training step: our model beside TransfoXL of Transformers 4.34.1.

    python -m recipes.transformer_xl_wikitext103.comparison.speed OTHER_PYTHON [--layers 16 ...]

`OTHER_PYTHON` is the interpreter of the environment with that release. One process holds one model,
and the two take turns, a step each, so that what else the machine does meets both alike. A step
is forward and backward of one segment with a full memory, without an optimizer. Words are random
with the frequencies of text. Printed are the median time by the clock and on the processor, which
on a busy machine says more, and the highest resident size less that before the model was built
(Linux).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

Step = Callable[[Tensor, Tensor], None]


def resident(kind: str) -> int:
    """Return this process's resident size in KiB: VmRSS is now, VmHWM the highest."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {kind}; measure memory on Linux.")


def ours(settings: dict) -> tuple[nn.Module, Step]:
    """Build our model, and a step that carries its memory."""
    from recipes.transformer_xl_wikitext103.configuration_transformer_xl import (  # noqa: PLC0415
        TransformerXLConfig,
    )
    from recipes.transformer_xl_wikitext103.modeling_transformer_xl import (  # noqa: PLC0415
        TransformerXLForCausalLM,
    )

    model = TransformerXLForCausalLM(TransformerXLConfig(**settings))
    state: dict = {"mems": None}

    def step(words: Tensor, following: Tensor) -> None:
        output = model(words, mems=state["mems"], shift_labels=following)
        state["mems"] = output.mems
        output.loss.backward()

    return model, step


def transfo_xl(settings: dict) -> tuple[nn.Module, Step]:
    """Build TransfoXL with the same settings; its memory starts full of zeros."""
    from transformers import TransfoXLConfig, TransfoXLLMHeadModel  # noqa: PLC0415

    settings = {"d_embed": settings["d_model"], **settings}
    config = TransfoXLConfig(
        **settings, untie_r=False, same_length=False, clamp_len=-1, adaptive=True
    )
    model = TransfoXLLMHeadModel(config)
    state: dict = {"mems": None}

    def step(words: Tensor, following: Tensor) -> None:
        # It shifts labels itself: one more word gives it as many targets as we have.
        words = torch.cat((words, following[:, -1:]), dim=1)
        output = model(words, mems=state["mems"], labels=words)
        state["mems"] = output.mems
        output.loss.backward()

    return model, step


def work(name: str, settings: dict, columns: int, tgt_len: int, threads: int) -> None:
    """Time a step for each line that comes in, and at the end say how much memory it took."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    vocab_size = settings["vocab_size"]
    build = {"ours": ours, "transfo_xl": transfo_xl}[name]
    build({**settings, "n_layer": 1, "vocab_size": 100, "cutoffs": []})  # imports everything
    before = resident("VmRSS")
    model, step = build(settings)
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest size so far
    model.train()
    for _ in sys.stdin:
        # The rank of a word in text: log-uniform.
        words = (vocab_size ** torch.rand(columns, tgt_len + 1)).long().clamp(max=vocab_size - 1)
        model.zero_grad()
        start, start_cpu = time.perf_counter(), time.process_time()
        step(words[:, :-1], words[:, 1:])
        found = {
            "seconds": time.perf_counter() - start,
            "cpu": time.process_time() - start_cpu,
            "kib": resident("VmHWM") - before,
        }
        print(json.dumps(found), flush=True)


def compare(pythons: dict[str, str], arguments: list[str], rounds: int) -> dict[str, list[dict]]:
    """Let the processes take turns; the first two rounds, which fill memories, do not count."""
    root = Path(__file__).parents[3]
    workers = {
        name: subprocess.Popen(
            [python, __file__, "--work", name, *arguments],
            cwd=root,
            env={"PYTHONPATH": str(root), "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, python in pythons.items()
    }
    results: dict[str, list[dict]] = {name: [] for name in workers}
    for _ in range(rounds + 2):
        for name, worker in workers.items():
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
            if not line:
                sys.exit(f"{name} ended with status {worker.wait()}.")
            results[name].append(json.loads(line))
    for worker in workers.values():
        worker.communicate()
    return {name: found[2:] for name, found in results.items()}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("python", nargs="?", help="interpreter with transformers 4.34.1")
    parser.add_argument("--work", choices=["ours", "transfo_xl"], help=argparse.SUPPRESS)
    parser.add_argument("--vocab_size", type=int, default=20000)
    parser.add_argument("--cutoffs", type=int, nargs="*", default=[2000, 5000, 10000])
    parser.add_argument("--div_val", type=int, default=1)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--columns", type=int, default=4)
    parser.add_argument("--tgt_len", type=int, default=150)
    parser.add_argument("--mem_len", type=int, default=150)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    return parser.parse_args()


def main() -> None:
    """Compare, or be one of the compared."""
    given = parse_arguments()
    settings = {"vocab_size": given.vocab_size, "cutoffs": given.cutoffs, "div_val": given.div_val}
    settings |= {"d_model": 410, "n_layer": given.layers, "n_head": 10, "d_head": 41}
    settings |= {"d_inner": 2100, "mem_len": given.mem_len, "dropout": 0.1, "dropatt": 0.0}
    if given.work:
        work(given.work, settings, given.columns, given.tgt_len, given.threads)
        return
    from recipes.common.tables import format_table  # noqa: PLC0415  not in the other environment

    pythons = {"ours": sys.executable, "transfo_xl": given.python}
    results = compare(pythons, sys.argv[2:], given.rounds)
    tokens = given.columns * given.tgt_len
    rows = []
    for name, found in results.items():
        clock, cpu = ([one[key] for one in found] for key in ("seconds", "cpu"))
        median = statistics.median(cpu)
        spread = f"{median:.2f} ({min(cpu):.2f} to {max(cpu):.2f})"
        peak = max(one["kib"] for one in found) / 2**20
        rows.append(
            [
                name,
                f"{statistics.median(clock):.2f}",
                spread,
                f"{tokens * given.threads / median:,.0f}",
                f"{peak:.2f}",
            ]
        )
    titles = ["implementation", "seconds a step", "on the processor (range)"]
    titles += ["words a second", "peak GiB"]
    print(
        f"Forward and backward, base width, {given.layers} layers, {given.vocab_size:,} words, "
        f"div_val {given.div_val}, {given.columns} x {given.tgt_len} words, memory "
        f"{given.mem_len}, {given.rounds} rounds, threads {given.threads}\n"
    )
    print(format_table(titles, rows))


if __name__ == "__main__":
    main()
