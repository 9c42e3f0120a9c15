"""Threads that help the C kernel: asked anew in each step, alike to the bit, harmless to a fork."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

from hf_adamp import AdamP
from hf_adamp.optim.backends.cpu import crew, library
from tests.weights import generator

pytestmark = pytest.mark.skipif(library.load()[0] is None, reason="needs the native kernel")

SHAPES = [(300, 512), (2, 70_000), (9_000, 4), *[(16, 16)] * 200]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


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


def test_set_num_threads_is_honoured_in_each_step(monkeypatch):
    woken = []
    monkeypatch.setattr(crew.Crew, "_wake", lambda self, count, help_: woken.append(count))
    adamp = optimizer()
    for count in (3, 1, 2):
        torch.set_num_threads(count)
        adamp.step()
    assert woken == [2, 1]


def test_threads_that_are_woken_help(monkeypatch):
    entered = threading.Event()
    own = crew.Crew()
    kernel, _ = library.load()

    class Counting:
        hf_adamp_step = kernel.hf_adamp_step

        @staticmethod
        def hf_adamp_help(door):
            entered.set()
            kernel.hf_adamp_help(door)

    run = own.run
    monkeypatch.setattr(crew.CREW, "run", lambda _, *rest: run(Counting, *rest))
    weights_after(1, 2)
    assert entered.wait(10)


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
