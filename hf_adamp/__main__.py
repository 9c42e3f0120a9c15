"""Launcher: runs a training script unchanged, with ``--optim adamp`` and ``--optim sgdp`` added.

``--log`` before the script adds a `ProjectionLog` to each of its Trainers. There are two more
commands: ``inspect`` says whether a model has scale-invariant weights, ``plot`` draws runs.

    python -m hf_adamp run_glue.py --optim adamp ...
    python -m hf_adamp --log runs/projection.jsonl run_glue.py --optim adamp ...
    torchrun --nproc_per_node 2 -m hf_adamp run_glue.py --optim adamp ...
    accelerate launch -m hf_adamp run_glue.py --optim adamp ...
    python -m hf_adamp inspect resnet
    python -m hf_adamp plot RUN [RUN ...]

The script runs as ``__main__`` with the ``sys.argv`` and ``sys.path`` that Python would give it.
The launcher does not import torch or Transformers before the script does. With several CPU
processes it also ends the process (see ``process_exit``).
"""

import argparse
import runpy
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

from hf_adamp import __version__
from hf_adamp.integration.process_exit import run_and_exit
from hf_adamp.integration.registration import register
from hf_adamp.integration.trainer_log import TrainerLog

__all__ = ["main"]

# Launchers start fresh interpreters, in which `register` has not been called.
_LAUNCHERS = {
    "accelerate": "accelerate launch",
    "accelerate.commands.accelerate_cli": "accelerate launch",
    "accelerate.commands.launch": "accelerate launch",
    "deepspeed": "deepspeed --module",
    "deepspeed.launcher.runner": "deepspeed --module",
    "torch.distributed.launch": "torchrun",
    "torch.distributed.run": "torchrun",
    "torchrun": "torchrun",
}
# Names in place of a script; run a script of the same name as ./inspect.
_COMMANDS = {
    "inspect": "hf_adamp.diagnostics.inspect_command",
    "plot": "hf_adamp.diagnostics.plot_command",
}


def main(argv: list[str] | None = None) -> None:
    """Parse the launcher's own arguments and run the script or module after them.

    Args:
        argv: Arguments without the program name; default ``sys.argv[1:]``.

    Raises:
        SystemExit: With status 2 if the arguments name nothing that can be run, and with the
            script's own status if it exits.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in _COMMANDS:
        import_module(_COMMANDS[argv[0]]).main(argv[1:])
        return
    parser = _parser()
    arguments = parser.parse_args(argv)
    target, *rest = arguments.module or arguments.script or [None]
    if target is None:
        parser.error("nothing to run; give a SCRIPT, or -m MODULE.")
    launcher = _LAUNCHERS.get(target if arguments.module else Path(target).name)
    if launcher is not None:
        parser.error(
            f"{target} starts fresh interpreters, which this launcher does not reach; "
            f"reverse the order: {_reversed(launcher)}."
        )
    if arguments.module is None and not Path(target).exists():
        parser.error(f"cannot find the script {target}; check the path, or use -m for a module.")
    register()
    if arguments.module is None:
        run: Callable[[], object] = partial(_run_script, target, rest)
    else:
        sys.argv = [target, *rest]
        run = partial(runpy.run_module, target, run_name="__main__", alter_sys=True)
    run_and_exit(run if arguments.log is None else partial(_run_logged, arguments.log, run))


def _reversed(launcher: str) -> str:
    option = "" if launcher.endswith("--module") else " -m"
    return f"{launcher} [OPTIONS]{option} hf_adamp SCRIPT [ARGS]"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hf_adamp",
        usage="%(prog)s [-h] [--version]\n"
        "       %(prog)s [--log FILE] (SCRIPT | -m MODULE) [ARGS ...]\n"
        "       %(prog)s inspect MODEL [OPTIONS]\n"
        "       %(prog)s plot RUN [RUN ...] [OPTIONS]",
        description="Run a training script with --optim adamp and --optim sgdp added, inspect a "
        "model (inspect --help), or plot runs (plot --help).",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hf-adamp {__version__}")
    parser.add_argument(
        "--log",
        type=_log_file,
        metavar="FILE",
        help="add ProjectionLog to each Trainer of the script and write FILE (.jsonl); with "
        "reports in place of FILE, the numbers go to the Trainer's reporters only",
    )
    parser.add_argument(
        "-m",
        dest="module",
        nargs=argparse.REMAINDER,
        help="run a module, as python -m does, and pass it ARGS",
    )
    parser.add_argument(
        "script",
        nargs=argparse.REMAINDER,
        metavar="SCRIPT ARGS",
        help="run a script, and pass it ARGS",
    )
    return parser


def _log_file(text: str) -> str:
    if text != "reports" and not text.endswith(".jsonl"):
        raise argparse.ArgumentTypeError(f"{text} must end in .jsonl, or be reports")
    return text


def _run_logged(file: str, run: Callable[[], object]) -> None:
    log = TrainerLog(None if file == "reports" else Path(file))
    log.attach()
    run()
    if not log.trainers:
        print(
            f"--log {file} has no effect: the script created no transformers.Trainer; in your own "
            "loop use hf_adamp.diagnostics.StepLog.",
            file=sys.stderr,
        )


def _run_script(script: str, arguments: list[str]) -> None:
    sys.argv = [script, *arguments]
    # `python -m` puts the working directory first in sys.path, `python SCRIPT` the script's. In
    # safe-path mode neither is there.
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = str(Path(script).resolve().parent)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
