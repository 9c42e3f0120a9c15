"""Threads that help the C kernel: asked anew in each step, alike to the bit, harmless to a fork."""

import ctypes
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

from hf_adamp import AdamP
from hf_adamp.optim.backends import cpu
from hf_adamp.optim.backends.cpu import crew, library
from tests.weights import generator

pytestmark = pytest.mark.skipif(library.load()[0] is None, reason="needs the native kernel")

SHAPES = [(300, 512), (2, 70_000), (9_000, 4), *[(16, 16)] * 200]


OURS = "Python's"
TORCHS = pytest.param(
    "torch's",
    marks=pytest.mark.skipif(library.parallel() is None, reason="torch does not show its OpenMP"),
)


@pytest.fixture(autouse=True, params=[OURS, TORCHS])
def own_crew(request, monkeypatch):
    """A crew of this test's own, of threads of one of the two kinds."""
    made = crew.Crew(None if request.param == OURS else library.parallel())
    monkeypatch.setattr(cpu, "CREW", made)
    before = torch.get_num_threads()
    yield made
    torch.set_num_threads(before)


def is_ours(own_crew):
    return not own_crew._door.parallel


def optimizer():
    source = generator(0)
    params = [nn.Parameter(torch.randn(shape, generator=source)) for shape in SHAPES]
    for param in params:
        param.grad = torch.randn(param.shape, generator=source)
    return AdamP(params, fused=True, weight_decay=0.1)


def weights_after(steps, count):
    torch.set_num_threads(count)
    adamp = optimizer()
    for _ in range(steps):
        adamp.step()
    return [param.detach() for param in adamp.param_groups[0]["params"]]


def test_number_of_threads_changes_no_bit():
    alone = weights_after(5, 1)
    for count in (2, 5):
        assert all(map(torch.equal, weights_after(5, count), alone))


def test_set_num_threads_is_honoured_in_each_step(own_crew, monkeypatch):
    woken, asked = [], []
    monkeypatch.setattr(own_crew, "_wake", lambda count, help_: woken.append(count + 1))
    adamp = optimizer()
    for count in (3, 1, 2):
        torch.set_num_threads(count)
        adamp.step()
        asked.append(own_crew._door.threads)
    assert woken == ([3, 2] if is_ours(own_crew) else [])
    assert asked == [3, 3, 2]


def test_helpers_work_in_other_threads(own_crew, monkeypatch):
    """Each thread that comes into the kernel is seen by what it is told to call."""
    entered: set[int] = set()
    both = threading.Event()
    kernel, _ = library.load()

    def seen():
        entered.add(threading.get_ident())
        if len(entered) > 1:
            both.set()

    if is_ours(own_crew):

        class Counting:
            @staticmethod
            def hf_adamp_step(*arguments):
                seen()
                kernel.hf_adamp_step(*arguments)

            @staticmethod
            def hf_adamp_help(door):
                seen()
                kernel.hf_adamp_help(door)

        run = own_crew.run
        monkeypatch.setattr(own_crew, "run", lambda _, *rest: run(Counting, *rest))
    else:
        kind = ctypes.CFUNCTYPE(
            None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32
        )
        work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        real = kind(library.parallel())

        @kind
        def counting(function, data, threads, flags):
            @work
            def each(own):
                seen()
                work(function)(own)

            real(ctypes.cast(each, ctypes.c_void_p), data, threads, flags)

        own_crew._door.parallel = ctypes.cast(counting, ctypes.c_void_p).value
    weights_after(1, 2)
    assert both.wait(10)


def test_steps_in_two_threads_at_once_do_not_mix():
    torch.set_num_threads(2)
    alone, both = weights_after(20, 1), [[], []]

    def train(place):
        both[place] = weights_after(20, 2)

    workers = [threading.Thread(target=train, args=(place,)) for place in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for weights in both:
        assert all(map(torch.equal, weights, alone))


FORKED = """
import os, torch
from torch import nn
from hf_adamp import AdamP
torch.set_num_threads(2)
param = nn.Parameter(torch.ones(1024, 512))
param.grad = torch.ones_like(param)
adamp = AdamP([param], fused=True)
adamp.step()
child = os.fork()
adamp.step()
if not child:
    os._exit(0)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_steps_go_on_on_both_sides_of_a_fork():
    command = [sys.executable, "-W", "ignore", "-c", FORKED]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.split() == ["0"]
