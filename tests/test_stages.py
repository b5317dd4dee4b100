"""No stale result can pass for a new one, and a stage stands on what it uses alone."""

import ast
import hashlib
import importlib
import json
import sys
from pathlib import Path

import pytest

from rules2ranks import stages
from rules2ranks.runs import ParameterError

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "workflow"))
import digest  # noqa: E402

DIGESTS = Path(__file__).with_name("stage_digests.json")


def source_of(name: str) -> Path:
    path = REPOSITORY / "lib" / name.replace(".", "/")
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"


def is_module(name: str) -> bool:
    return source_of(name).is_file()


def modules_behind(name: str, seen: set[str]) -> set[str]:
    """A module of the package and all of the package that it imports, directly or not."""
    path = source_of(name)
    if name in seen or not path.is_file():
        return seen
    seen.add(name)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rules2ranks"):
            for alias in node.names:
                part = f"{node.module}.{alias.name}"
                # A package that only has what is imported in it counts for nothing.
                modules_behind(part if is_module(part) else node.module, seen)
    return seen


def stage_digest(name: str) -> str:
    """A digest of all code that a stage's result may depend on: its module and those behind it, but not the store."""
    names = modules_behind(f"rules2ranks.stages.{stages.HOMES[name]}", set()) - {"rules2ranks.runs"}
    parts = []
    for module in sorted(names):
        parts.append(module + digest.code(Path(importlib.import_module(module).__file__).read_text()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", stages.HOMES)
def test_changed_code_asks_for_a_new_version(name):
    """After a change that gives other results: raise the stage's version. Either way: `python tests/test_stages.py`."""
    noted = json.loads(DIGESTS.read_text())[name]
    assert noted == {"version": getattr(stages, name).version, "code": stage_digest(name)}, (
        f"code behind the stage {name!r} has changed: raise its version if results change with it, "
        "then note the new digest with `python tests/test_stages.py`"
    )


@pytest.mark.parametrize("name", ["language", "prune", "recover", "fragility"])
def test_compression_stands_on_no_downstream_task(name):
    """Or else a change there would ask for new versions of what never calls it."""
    behind = modules_behind(f"rules2ranks.stages.{stages.HOMES[name]}", set())
    for other in ("stages.transfer", "evaluation", "tasks.chess", "tasks.reasoning"):
        assert f"rules2ranks.{other}" not in behind


def test_an_unknown_stage_is_refused_by_name():
    with pytest.raises(AttributeError, match="its stages are pretrain"):
        _ = stages.pretrian
    with pytest.raises(ParameterError, match="did you mean 'source'"):
        stages.pretrain(sourc=30)


if __name__ == "__main__":
    noted = {name: {"version": getattr(stages, name).version, "code": stage_digest(name)} for name in stages.HOMES}
    DIGESTS.write_text(json.dumps(noted, indent=1) + "\n")
    print(f"noted {len(noted)} digests in {DIGESTS.name}")
