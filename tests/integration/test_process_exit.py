"""How a process ends after a script's main function: alone, and as one of several on CPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
# torch as far as it is asked, since its import takes seconds. `Fatal` stands for gloo's threads: it
# ends the process badly where the interpreter shuts down.
SCRIPT = """
import atexit, os, sys, threading, time
from types import SimpleNamespace as Namespace

sys.modules["torch"] = Namespace(
    cuda=Namespace(is_initialized=lambda: {cuda}), distributed=Namespace(is_available=lambda: False)
)
from hf_adamp.integration.process_exit import run_and_exit

class Fatal:
    def __del__(self, leave=os._exit):
        leave(99)

fatal = Fatal()
atexit.register(print, "at exit")

def late():
    time.sleep(0.2)
    print("late")

def main():
    threading.Thread(target=late).start()
    print("main")
    {ending}

run_and_exit(main)
"""


def run(ending="pass", world_size="2", *, cuda=False):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(ending=ending, cuda=cuda)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "WORLD_SIZE": world_size},
    )


ENDINGS = {
    "returns": ("pass", 0, ""),
    "exits": ("sys.exit()", 0, ""),
    "exits with a status": ("sys.exit(7)", 7, ""),
    "exits with a message": ("sys.exit('no data')", 1, "no data\n"),
    "fails": ("raise ValueError('no data')", 1, "ValueError: no data\n"),
}


@pytest.mark.parametrize(("ending", "status", "error"), ENDINGS.values(), ids=ENDINGS)
def test_one_of_several_processes_ends_before_the_interpreter_shuts_down(ending, status, error):
    outcome = run(ending)
    assert outcome.returncode == status, outcome.stderr
    assert outcome.stdout == "main\nlate\nat exit\n"
    assert outcome.stderr.endswith(error)
    assert bool(outcome.stderr) == bool(error)


@pytest.mark.parametrize(
    "situation", [{"world_size": "1"}, {"world_size": ""}, {"cuda": True}], ids=str
)
def test_other_processes_end_as_python_ends_them(situation):
    outcome = run(**situation)
    assert outcome.returncode == 99
    assert outcome.stdout == "main\nlate\nat exit\n"
