"""Every command of README, the docs and the recipes, run as printed, with what it starts replaced.

A block of shell commands runs in a copy of the recipes. In place of `accelerate`, `python`, `make`,
`pip` and `torchrun` stands a program that notes how it was called. So a launch script really runs,
and what it would start is held against what there is: a target of make, an extra, a module, the
launcher's options, and the options of the training script, which its own parser reads.
"""

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser

from tests.test_documentation import PAGES, REPOSITORY

try:
    import tomllib
except ImportError:
    import tomli as tomllib

NOTE = """#!{python}
import json, os, sys
with open(os.environ["NOTES"], "a", encoding="utf-8") as notes:
    print(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]), file=notes)
"""
REPLACED = {
    **dict.fromkeys(("accelerate", "accelerate-launch", "make", "pip", "torchrun"), NOTE),
    "python": NOTE + 'if sys.argv[1] == "-c": print(1)  # asked for the number of GPUs\n',
    "git": '#!/bin/sh\necho "$CHECKOUT"\n',
    "scontrol": "#!/bin/sh\necho first-host\n",
    "srun": '#!/bin/sh\nexec "$@"\n',
}
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
EXTRAS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]


def blocks(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    return re.findall(r"^```(?:bash|sh)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder with the recipes' code, and the programs that only take notes."""
    folder = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("results", "fixtures", "__pycache__", "*.png")
    shutil.copytree(REPOSITORY / "recipes", folder / "recipes", ignore=ignored)
    programs = folder / "bin"
    programs.mkdir()
    for name, text in REPLACED.items():
        (programs / name).write_text(text.format(python=sys.executable), encoding="utf-8")
        (programs / name).chmod(0o755)
    return folder


def noted(block, checkout, notes):
    """The calls that a block of commands makes."""
    environment = {
        **os.environ,
        "PATH": f"{checkout / 'bin'}:{os.environ['PATH']}",
        **{"NOTES": str(notes), "CHECKOUT": str(checkout), "RANK": "0", "FIRST": "first-host"},
        **{"SLURM_JOB_NODELIST": "", "SLURM_NNODES": "2", "SLURM_NODEID": "0"},
    }
    run = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", block],
        cwd=checkout, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, f"{block}\n{run.stdout}{run.stderr}"
    lines = notes.read_text(encoding="utf-8").splitlines() if notes.exists() else []
    return [json.loads(line) for line in lines]


def check(call, monkeypatch):
    """Hold one call against what there is."""
    program, *arguments = call
    if program == "make":
        targets = [argument for argument in arguments if "=" not in argument]
        missing = [t for t in targets if not re.search(rf"^{re.escape(t)}:", MAKEFILE, re.M)]
        assert not missing, f"make has no target {missing}"
    elif program == "pip":
        asked = {e for text in arguments for e in re.findall(r"\[([\w,-]+)\]", text)}
        assert {extra for names in asked for extra in names.split(",")} <= set(EXTRAS)
    elif program.startswith("accelerate"):
        options = arguments if program == "accelerate-launch" else arguments[1:]
        launch = launch_command_parser().parse_args(options)
        script, rest = launch.training_script, launch.training_script_args
        check_module(script, rest, monkeypatch) if launch.module else check_script(script)
        if launch.config_file:
            assert (REPOSITORY / launch.config_file).exists(), launch.config_file
    elif program == "torchrun" or arguments[0] == "-m":
        start = arguments.index("-m")
        check_module(arguments[start + 1], arguments[start + 2 :], monkeypatch)
    elif arguments[0] != "-c":
        check_script(arguments[0])


def check_script(script):
    # run_glue.py and train.py stand for the reader's own.
    assert (REPOSITORY / script).exists() or "/" not in script, script


def check_module(module, arguments, monkeypatch):
    assert importlib.util.find_spec(module), f"there is no module {module}"
    if module == "hf_adamp" and "-m" in arguments:
        start = arguments.index("-m")
        check_module(arguments[start + 1], arguments[start + 2 :], monkeypatch)
    elif re.fullmatch(r"recipes\.\w+\.train", module):
        check_options(module, arguments, monkeypatch)


class ReadError(Exception):
    """A training script has read its options."""


def check_options(module, arguments, monkeypatch):
    """The script's own parser takes these options; it does not begin."""
    train = importlib.import_module(module)
    parse = train.parse

    def read(*args):
        parse(*args)
        raise ReadError

    monkeypatch.setattr(train, "parse", read)
    # Without a GPU, Trainer's arguments refuse bf16 unless they are told of a CPU.
    with pytest.raises(ReadError):
        train.main([*arguments, "--use_cpu", "true"])
    monkeypatch.setattr(train, "parse", parse)


COMMANDS = [
    pytest.param(block, id=f"{page}-{number}")
    for page in PAGES
    for number, block in enumerate(blocks(page))
]


@pytest.mark.parametrize("block", COMMANDS)
def test_commands_start_what_there_is(block, checkout, tmp_path, monkeypatch):
    calls = noted(block, checkout, tmp_path / "notes")
    assert calls, "a block of commands starts nothing; if it is none, call it text"
    monkeypatch.chdir(checkout)
    for call in calls:
        check(call, monkeypatch)


@pytest.mark.parametrize(
    "wrong",
    [
        "make no-such-target",
        "pip install '.[no-such-extra]'",
        "python -m hf_adamp.no_such_module",
        "accelerate launch --no_such_option -m hf_adamp train.py",
        "accelerate launch -m hf_adamp -m recipes.rebias.train --output_dir a --no_such_option 1",
        "bash recipes/rebias/launch/no_such_script.sh",
    ],
)
def test_a_wrong_command_is_found(wrong, checkout, tmp_path, monkeypatch):
    def run():
        for call in noted(wrong, checkout, tmp_path / "notes"):
            check(call, monkeypatch)

    with pytest.raises((AssertionError, SystemExit, ModuleNotFoundError, ValueError)):
        run()


@pytest.mark.slow
def test_readmes_training_runs_as_printed(tmp_path):
    """Two steps of it, to a folder of the test's."""
    (command,) = (b for b in blocks("README.md") if b.startswith("accelerate"))
    command = command.strip() + f" --max_steps 2 --output_dir {tmp_path}"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        ["bash", "-c", command],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    assert (tmp_path / "all_results.json").exists()
