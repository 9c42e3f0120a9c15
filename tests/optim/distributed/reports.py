"""Starts Python anew, on as many processes as a launcher is told, and reads its report."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
CONFIGS = REPOSITORY / "recipes" / "accelerate_configs"


def report_of_run(*arguments, device="ACCELERATE_USE_CPU=1"):
    """The report of `python -m` with these arguments; `device` is set in its environment.

    Raises:
        AssertionError: with all that it printed, where it failed or did not report.
    """
    name, _, value = device.partition("=")
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        name: value,
    }
    outcome = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
    )
    lines = [line for line in outcome.stdout.splitlines() if line.startswith("REPORT ")]
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert len(lines) == 1, outcome.stdout + outcome.stderr
    return json.loads(lines[0].removeprefix("REPORT "))
