"""A pool of processes that talk over gloo, for tests that need several.

Starting a process costs seconds, a check in it milliseconds: a pool lives as long as a test file
and runs one function after the other on all its processes. A check that hangs or fails ends its
pool with the traceback of every process that has one; the next check gets new processes.
"""

import tempfile
import time
import traceback
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch
from torch import distributed, multiprocessing

from hf_adamp.integration.process_exit import run_and_exit

# Imported once, in the server that all processes are forked from.
_PRELOADED = [
    "torch._dynamo",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
]
# A collective that is waited for in vain fails after this, so a test cannot hang.
_COLLECTIVE_SECONDS = 60
_CHECK_SECONDS = 120


class Pool:
    """Processes with ranks 0 to size − 1, in one process group."""

    def __init__(self, size: int):
        self.size = size
        self._processes = []
        self._pipes: list[Connection] = []

    def run(self, check, *args):
        """Call a function on every process; the list of what it returns, by rank.

        What it takes and returns is pickled; it must be importable.

        Raises:
            AssertionError: if it raises on any process or does not return in time.
        """
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((check, args))
        try:
            return self._gather()
        except BaseException:
            self.close(kill=True)
            raise

    def _start(self):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        # A file to meet at: a port could be taken by the time it is used.
        meeting = Path(tempfile.mkdtemp()) / "meeting"
        for rank in range(self.size):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, self.size, meeting, there), daemon=True
            )
            process.start()
            there.close()
            self._processes.append(process)
            self._pipes.append(here)

    def _gather(self):
        results, failures = {}, {}
        deadline = time.monotonic() + _CHECK_SECONDS
        while len(results) + len(failures) < self.size:
            missing = [p for r, p in enumerate(self._pipes) if r not in {*results, *failures}]
            # Once one has failed, the others may wait for it: they get a moment to say their own.
            left = 1.0 if failures else max(deadline - time.monotonic(), 0)
            ready = wait(missing, timeout=left)
            if not ready:
                break
            for pipe in ready:
                rank = self._pipes.index(pipe)
                try:
                    succeeded, result = pipe.recv()
                except (EOFError, ConnectionError):
                    succeeded, result = False, "the process died"
                (results if succeeded else failures)[rank] = result
        if len(results) == self.size:
            return [results[rank] for rank in range(self.size)]
        silent = sorted({*range(self.size)} - {*results, *failures})
        told = [f"--- rank {rank} ---\n{text}" for rank, text in sorted(failures.items())]
        raise AssertionError("\n".join([*told, f"still running: {silent}"]))

    def close(self, *, kill=False):
        """End the processes."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if kill:
                process.kill()
            elif process.is_alive():
                pipe.send(None)
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
        self._processes, self._pipes = [], []


def _serve(rank, size, meeting, pipe):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=meeting.as_uri(),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=_COLLECTIVE_SECONDS),
    )
    run_and_exit(partial(_answer, pipe))


def _answer(pipe):
    while (task := pipe.recv()) is not None:
        check, args = task
        torch.manual_seed(0)
        try:
            answer = True, check(*args)
        except BaseException:
            answer = False, traceback.format_exc()
        pipe.send(answer)
