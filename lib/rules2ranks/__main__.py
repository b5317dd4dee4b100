"""One result from the command line: one measurement is then one job on a cluster.

python -m rules2ranks list
python -m rules2ranks show recover
python -m rules2ranks run recover parameters.yaml
python -m rules2ranks measure list.json 3
python -m rules2ranks plan model.yaml
"""

import argparse
import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

from rules2ranks import runs, stages
from rules2ranks.parameters import read_yaml


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rules2ranks", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the stages, what each does, and how many results of each there are")
    show = commands.add_parser("show", help="a stage's parameters, with types and defaults, and what it gives")
    run = commands.add_parser("run", help="make one result, or find it; prints its folder and its metrics as JSON")
    for command in (show, run):
        command.add_argument("stage", choices=stages.HOMES, metavar="STAGE", help=", ".join(stages.HOMES))
    measure = commands.add_parser("measure", help="one part of a list of measurements, as the workflow writes it")
    measure.add_argument("file", type=Path, help="what `python -m rules2ranks.tables --missing FILE` wrote")
    measure.add_argument("part", type=int, help="its number, from 0")
    plan = commands.add_parser("plan", help="a dry run: the memory of each step on a model, which is not loaded")
    for command in (run, plan):
        command.add_argument("file", type=Path, help="parameters as .json or .yaml: names and values")
    asked = parser.parse_args(arguments)
    if asked.command == "list":
        return _list()
    if asked.command == "plan":
        return _plan(asked.file)
    if asked.command == "measure":
        return _measure(asked.file, asked.part)
    stage = getattr(stages, asked.stage)
    return _show(stage) if asked.command == "show" else _run(stage, asked.file)


def _list() -> int:
    print(f"Results lie in {runs.root()}.")
    for name in stages.HOMES:
        done = sum(1 for _ in (runs.root() / name).glob("[!.]*/provenance.json"))
        print(f"{name:<11}{done:>6} results  {inspect.getdoc(getattr(stages, name)).splitlines()[0]}")
    return 0


def _show(stage: runs.Stage) -> int:
    print(f"{inspect.getdoc(stage)}\n\nParameters: {inspect.getdoc(stage.Params)}\n")
    for name, field in stage.Params.model_fields.items():
        value = field.get_default(call_default_factory=True)
        needed = "has to be given" if field.is_required() else f"default {value!r}"
        print("  " + "; ".join(filter(None, (f"{name}: {in_words(field.annotation)}", needed, field.description))))
    return 0


def in_words(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is Annotated:
        return in_words(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(in_words, get_args(kind)))
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    inner = ", ".join(in_words(part) for part in get_args(kind) if part is not ...)
    name = getattr(kind, "__name__", str(kind)).replace("NoneType", "None")
    return f"{name} of {inner}" if inner else name


def _run(stage: runs.Stage, file: Path) -> int:
    try:
        given = _given(stage.Params, file)
    except (OSError, yaml.YAMLError, runs.ParameterError) as error:
        print(f"{file}: {error}", file=sys.stderr)
        return 2
    result = stage(given)
    print(json.dumps({"folder": str(result.folder), "metrics": result.metrics}, indent=1))
    return 0


def _measure(file: Path, part: int) -> int:
    from rules2ranks.tables import many

    try:
        jobs = many.read_part(file, part)
    except (OSError, ValueError) as error:
        print(f"{file}: {error}", file=sys.stderr)
        return 2
    many.measure(jobs, f"part {part}")
    return 0


def _plan(file: Path) -> int:
    from rules2ranks.stages import footprint

    try:
        found = footprint.footprint(_given(footprint.Planned, file))
    except (OSError, ValueError, yaml.YAMLError) as error:
        print(f"{file}: {error}", file=sys.stderr)
        return 2
    print(f"{'step':<12}{'parameters':>16}{'GB at the peak':>16}")
    for step, row in found.items():
        print(f"{step:<12}{row['parameters']:>16,}{row['bytes'] / 1e9:>16.2f}")
    return 0


def _given(kind: type[runs.Params], file: Path) -> runs.Params:
    """Parameters from a file; JSON is YAML, too."""
    parameters = read_yaml(file.read_text(encoding="utf-8")) or {}
    if not isinstance(parameters, dict):
        raise runs.ParameterError(f"{file} holds no names with values")
    return kind.check(parameters)


if __name__ == "__main__":
    sys.exit(main())
