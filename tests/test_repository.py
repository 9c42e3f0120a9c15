"""What the repository promises about itself: one version, working make targets, pinned packages."""

import re
import subprocess
from pathlib import Path

import hf_adamp

REPOSITORY = Path(__file__).parents[1]


def read(name):
    return (REPOSITORY / name).read_text(encoding="utf-8")


def test_changelog_tops_with_the_version():
    assert re.search(r"^## (\S+)", read("CHANGELOG.md"), re.MULTILINE)[1] == hf_adamp.__version__


def test_citation_names_the_version():
    assert re.search(r"^version: (\S+)$", read("CITATION.cff"), re.M)[1] == hf_adamp.__version__


def test_make_lists_its_targets():
    printed = subprocess.run(
        ["make", "--no-print-directory"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    for target in ("demo", "test", "lint", "bench", "clean"):
        assert re.search(rf"^  make {target} +\S", printed, re.MULTILINE), target


def test_ci_runs_make_test_and_nothing_else():
    commands = [line for line in read(".ci/run").splitlines() if line and line[0] != "#"]
    assert commands[-1] == "exec make test"


def test_every_dependency_is_pinned():
    project = read("pyproject.toml").split("[project.entry-points")[0]
    named = re.findall(r'"([a-zA-Z0-9_-]+)(?:>=|==)[0-9.]+"', project)
    pinned = re.findall(r"^([\w-]+)==", read("constraints.txt"), re.MULTILINE)
    assert len(named) > 10
    missing = {n.replace("_", "-").lower() for n in named} - {
        p.replace("_", "-").lower() for p in pinned
    }
    assert not missing


def test_test_files_have_names_of_their_own():
    """Without packages a module is found by its file's name, in processes that tests start too."""
    names = [path.name for path in (REPOSITORY / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_folders_of_tests_hide_no_package():
    """pytest puts each folder of tests on the path, where one below it would be found first."""
    folders = {path.parent.name for path in (REPOSITORY / "tests").rglob("*.py")} - {"tests"}
    packages = {"triton", "cuda", "torch", "transformers", "deepspeed", "accelerate", "datasets"}
    assert not folders & packages
