"""Run the tests against other versions of torch, Transformers and their companions.

python tools/versions.py                    all sets of versions; writes docs/versions.md
python tools/versions.py oldest newest      these only; the rows of the others stay
python tools/versions.py --list             name them

Each set has an environment of its own in .venv/versions; `pinned` is the one that runs this.
Recipes are tested with the pinned versions only, by `make test`: their data sets and decoders are
not what the package's ranges are about.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.pages import DOCS, Section  # noqa: E402  (found only from here)

FOLDER = ROOT / ".venv" / "versions"
SECTION = Section(DOCS / "versions.md", "versions")
TESTS = ["tests", "--ignore=tests/recipes", "--ignore=tests/test_commands.py"]

# What stands in a row; the ends of the ranges in pyproject.toml are among them.
COLUMNS = ("torch", "transformers", "accelerate", "trl", "peft")
SETS = {
    "oldest": {
        **{"torch": "2.6.0", "transformers": "4.57.0", "accelerate": "1.10.0"},
        **{"trl": "0.20.0", "peft": "0.15.0", "torchao": "0.13.0", "datasets": "3.0.0"},
    },
    # A newer peft refuses the torchao that fits this torch.
    "torch-2.9": {
        **{"torch": "2.9.1", "transformers": "5.0.0", "torchao": "0.14.1", "peft": "0.18.0"},
    },
    "pinned": {},
    "newest": {},
}


def install(name: str) -> Path:
    """Make the environment of a set, unless it is there; returns its Python."""
    if name == "pinned":
        return Path(sys.executable)
    folder = FOLDER / name
    python = folder / "bin" / "python"
    done = folder / ".done"
    if done.exists():
        return python
    venv.create(folder, with_pip=True, clear=True)
    pins = [f"{package}=={version}" for package, version in SETS[name].items()]
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    # All at once, so that the resolver weighs the pins against what the tests ask for.
    subprocess.run([*pip, *pins, f"{ROOT}[test]"], check=True)
    done.touch()
    return python


def run(name: str, workers: int) -> str:
    """Test a set of versions; returns its row."""
    python, report = install(name), FOLDER / f"{name}.xml"
    command = [str(python), "-m", "pytest", "-q", "-n", str(workers), f"--junitxml={report}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([*command, *TESTS], cwd=ROOT, env=environment, check=False)
    versions = [installed(python, package) for package in COLUMNS]
    return "| " + " | ".join([name, *versions, *counts(report), date.today().isoformat()]) + " |"


def installed(python: Path, package: str) -> str:
    """The version that an environment has of a package."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def counts(report: Path) -> list[str]:
    """How many tests passed, were skipped and failed, of pytest's report."""
    suite = next(ElementTree.parse(report).iter("testsuite"))
    total, skipped, failed = (
        sum(int(suite.get(kind, 0)) for kind in kinds)
        for kinds in (("tests",), ("skipped",), ("failures", "errors"))
    )
    return [f"{total - skipped - failed:,}", f"{skipped:,}", f"{failed:,}"]


def write(row: str) -> None:
    """Put a row in the place of the set's earlier one."""
    head = "| " + " | ".join(["set", *COLUMNS, "passed", "skipped", "failed", "on"]) + " |"
    rule = "| --- |" + " --- |" * len(COLUMNS) + " ---: | ---: | ---: | --- |"
    rows = {line.split("|")[1].strip(): line for line in SECTION.read().splitlines()[2:]}
    rows[row.split("|")[1].strip()] = row
    SECTION.write("\n".join([head, rule, *(rows[name] for name in SETS if name in rows)]))


def main(arguments: Sequence[str]) -> None:
    """Run the sets that are asked for and write their rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sets", nargs="*", metavar="SET", help=", ".join(SETS))
    parser.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--list", action="store_true", help="name the sets and end")
    options = parser.parse_args(arguments)
    unknown = set(options.sets) - set(SETS)
    if unknown:
        parser.error(f"unknown {', '.join(sorted(unknown))}; known: {', '.join(SETS)}")
    if options.list:
        print("\n".join(SETS))
        return
    for name in options.sets or SETS:
        row = run(name, options.workers)
        print(row, flush=True)
        write(row)


if __name__ == "__main__":
    main(sys.argv[1:])
