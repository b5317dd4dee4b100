"""What the project is built of: locked with hashes, pinned by commit; nothing unpickled, nothing fetched unasked."""

import ast
import re
import socket
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "supply"))
import audit  # noqa: E402

LOCK = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
LIBRARY = sorted((REPOSITORY / "lib").rglob("*.py"))
#: Modules and functions that read what can run any code.
UNPICKLING = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "read_pickle", "unpickle"}


def locked() -> dict[str, tuple[str, str]]:
    """By name: the version, and the lines with its hashes."""
    entries = re.findall(r"^([A-Za-z0-9._-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", LOCK, re.M)
    return {canonicalize_name(name): (version, hashes) for name, version, hashes in entries}


def test_the_lock_holds_every_pinned_version_and_a_hash_of_everything() -> None:
    found = locked()
    lines = [line for line in LOCK.splitlines() if line and line[0] not in " #"]
    assert len(found) == len(lines), "a line without hashes"
    for line in (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if stated := line.partition("#")[0].strip():
            asked = Requirement(stated)
            assert asked.specifier.contains(found[canonicalize_name(asked.name)][0]), f"{asked}: run `make lock`"


def test_the_lock_names_no_index_and_no_build_that_one_index_alone_has() -> None:
    assert "://" not in LOCK and "index" not in LOCK
    assert not [name for name, (version, _) in locked().items() if "+" in version]


@pytest.mark.parametrize("path", sorted((REPOSITORY / ".github" / "workflows").glob("*.yml")), ids=lambda p: p.name)
def test_actions_are_pinned_by_commit_with_their_version_beside_it(path: Path) -> None:
    uses = re.findall(r"uses: *(.*)", path.read_text(encoding="utf-8"))
    assert uses
    assert not [use for use in uses if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", use)]


def test_the_audit_asks_for_all_that_is_pinned_and_says_what_it_could_not_ask_for() -> None:
    pinned = audit.pins()
    names = {canonicalize_name(pin.partition("==")[0]) for pin in pinned}
    assert names >= {*locked(), "sphinx", "lm-eval", "pip-audit"} and len(names) == len(pinned)
    asked = [{"name": "a", "version": "1", "vulns": []}]
    assert audit.told(["a==1"], asked) == (["No known vulnerability in 1 pinned packages."], 0)
    assert audit.told(["a==1", "b==1"], asked)[1] == audit.told(["a==1"], [])[1] == audit.SKIPPED
    asked[0]["vulns"] = [{"id": "CVE-1", "fix_versions": ["2"]}]
    assert audit.told(["a==1", "b==1"], asked) == (["a 1: CVE-1, mended in 2"], 1)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_nothing_is_unpickled(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names) | ast.ImportFrom(None, names):
                found = {alias.name.partition(".")[0] for alias in names}
            case ast.ImportFrom(module):
                found = {module.partition(".")[0]}
            case ast.Call(ast.Attribute(ast.Name("torch"), "load"), _, keywords):
                safe = any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in keywords)
                found = set() if safe else {"pickle"}
            case ast.keyword("allow_pickle", ast.Constant(True)):
                found = {"pickle"}
            case ast.Attribute(_, name):
                found = {name}
            case _:
                continue
        assert found.isdisjoint(UNPICKLING), f"line {getattr(node, 'lineno', '?')}"


@pytest.mark.usefixtures("store")
def test_nothing_is_fetched_that_was_not_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model in a folder goes from pruning to an export while no host can be found and none reached."""
    from huggingface_hub import constants

    from rules2ranks.stages import own_model

    def refused(*given: object, **named: object) -> None:
        tried.append(given)
        raise OSError("no network here")

    tried: list[object] = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    base = own_model.demo(tmp_path, examples=200) | {"held_out": 20, "length": 24}
    own_model.export({"pruned": {"base": base, "ratio": 0.2}, "steps": 2, "examples": 20}, tmp_path / "exported")
    assert not tried
