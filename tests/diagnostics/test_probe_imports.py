"""The files of the diagnostics import each other in one direction, and bear names of their own."""

import ast
from collections import Counter
from pathlib import Path

import hf_adamp.diagnostics

ROOT = Path(hf_adamp.diagnostics.__file__).parent
PACKAGE = "hf_adamp.diagnostics"


def files():
    """Every file of the room by the name it is imported by."""
    return {
        ".".join([PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(
            ".__init__"
        ): path
        for path in ROOT.rglob("*.py")
    }


def imports(path, known):
    """What a file imports of the room, at its top and inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names & known.keys()


def circle(graph):
    """The first circle of imports, as a list of names, or nothing."""
    done = set()

    def follow(name, path):
        if name in path:
            return [*path[path.index(name) :], name]
        if name not in done:
            for other in sorted(graph[name]):
                if found := follow(other, [*path, name]):
                    return found
            done.add(name)
        return []

    return next((found for name in graph if (found := follow(name, []))), [])


def test_files_import_each_other_in_one_direction():
    known = files()
    graph = {name: imports(path, known) for name, path in known.items()}
    # The lazy package's names for type checkers are no imports of the room itself.
    graph[PACKAGE] = set()
    assert len(graph[f"{PACKAGE}.probe"]) > 4
    assert circle(graph) == []


def test_circle_is_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_name_of_a_file_means_one_thing():
    names = Counter(path.stem for path in files().values() if path.stem != "__init__")
    assert [name for name, count in names.items() if count > 1] == []
