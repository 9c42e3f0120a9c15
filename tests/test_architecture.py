"""The doors between rooms: imports go downwards only, and nowhere in a circle.

Imports inside functions count: they are doors too.
"""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_adamp"
# From the top: a room may import those below it. Files of one room are told apart by circles only.
ROOMS = [
    ["hf_adamp.__main__", "hf_adamp._autoload"],
    ["hf_adamp.integration"],
    ["hf_adamp.diagnostics"],
    ["hf_adamp.param_groups"],
    ["hf_adamp.granularities"],
    ["hf_adamp.optim"],
    ["hf_adamp._version"],
]
LIBRARIES = {"hf_adamp.optim": {"torch", "torchao"}}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_by(name):
    """Everything that a file imports, anywhere in it, but for what only a type checker reads."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level]
            origin = ".".join([*(base if node.level else []), *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield inner if inner in FILES else origin


def room_of(name):
    for level, names in enumerate(ROOMS):
        if any(name == room or name.startswith(f"{room}.") for room in names):
            return level
    return None


GRAPH = {name: {other for other in imported_by(name) if other in FILES} for name in FILES}


def test_every_file_is_in_a_room():
    # The package's own file hands out public names of all rooms when they are asked for.
    assert [name for name in FILES if room_of(name) is None] == ["hf_adamp"]


@pytest.mark.parametrize("name", FILES)
def test_imports_go_downwards(name):
    for other in GRAPH[name]:
        if room_of(name) is not None and room_of(other) is not None:
            assert room_of(other) >= room_of(name), f"{name} imports {other}"


def test_nothing_is_imported_in_a_circle():
    graph = {name: others - {name} for name, others in GRAPH.items() if name != "hf_adamp"}
    try:
        TopologicalSorter({n: others - {"hf_adamp"} for n, others in graph.items()}).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("hf_adamp.optim")])
def test_the_optimizer_knows_torch_only(name):
    for other in imported_by(name):
        top = other.partition(".")[0]
        allowed = {"hf_adamp", *LIBRARIES["hf_adamp.optim"], *sys.stdlib_module_names}
        # A CUDA build of torch brings it along, and only its kernels ask for it.
        allowed |= {"triton"} if name.startswith("hf_adamp.optim.backends.cuda") else set()
        assert top in allowed, other


def test_a_circle_would_be_found():
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


def test_recipes_use_public_names_only():
    for path in sorted((ROOT / "recipes").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "hf_adamp.optim"
            ):
                pytest.fail(f"{path} imports {node.module}")
