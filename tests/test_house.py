"""The house: imports look down, never up or in a circle, and no module is too long to read."""

import ast
import functools
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parents[1] / "lib" / "rules2ranks"
FLOORS = [
    {
        "automata",
        "calibration",
        "configuration",
        "cpu",
        "decoders",
        "diagrams",
        "figures",
        "gpt2",
        "optimising",
        "parameters",
        "published",
        "runs",
        "snapshots",
        "spreads",
        "storages",
        "training",
    },
    {"checkpoints", "complexity", "evaluation", "models", "probes", "tasks"},
    {"importance", "pruning", "quantisation", "recovery", "search"},
    {"stages"},
    {"tables"},
    {"findings"},
    {"__main__", "__init__"},
]
FLOOR = {part: number for number, parts in enumerate(FLOORS) for part in parts}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(LIBRARY).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(LIBRARY.rglob("*.py"))}


@functools.cache
def imported(name: str) -> frozenset[str]:
    """The modules of the library that a module imports, at its head or within a function."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "rules2ranks":
            home = node.module.removeprefix("rules2ranks").lstrip(".")
            for alias in node.names:
                part = f"{home}.{alias.name}".lstrip(".")
                found.add(part if part in MODULES else home)
    return frozenset(found - {""})


@pytest.mark.parametrize("name", MODULES)
def test_imports_only_look_down(name):
    own = FLOOR[name.split(".")[0]]
    climbs = [other for other in imported(name) if FLOOR[other.split(".")[0]] > own]
    assert not climbs, f"{name}, on floor {own + 1}, imports {', '.join(climbs)} from above"


def test_nothing_imports_itself_by_a_roundabout_way():
    """A package may gather what its modules have: its own `__init__` counts as what it imports."""
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " imports ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in imported(name):
                visit(other, (*way, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())
    assert done == set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_can_be_read_at_one_go(name):
    lines = MODULES[name].read_text(encoding="utf-8").count("\n")
    assert lines <= 400, f"{name} has {lines} lines: over 400 it is two modules"
