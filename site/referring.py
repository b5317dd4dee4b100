"""The pages on the library: one for each of its parts, with all public names of all its modules."""

from __future__ import annotations

import ast
from pathlib import Path

LIBRARY = Path(__file__).resolve().parents[1] / "lib" / "rules2ranks"


def write(source: Path) -> None:
    """`api/index.rst` and a page for each module and package directly below `rules2ranks`."""
    (source / "api").mkdir()
    parts = sorted(path for path in LIBRARY.iterdir() if is_part(path))
    for path in parts:
        (source / "api" / f"{path.stem}.rst").write_text(page(path), encoding="utf-8")
    (source / "api" / "index.rst").write_text(index(parts), encoding="utf-8")


def is_part(path: Path) -> bool:
    return (path.suffix == ".py" or (path / "__init__.py").is_file()) and not path.name.startswith("_")


def index(parts: list[Path]) -> str:
    entries = [f":doc:`{path.stem}`\n    {summary(path)}\n" for path in parts]
    names = "\n".join(f"   {path.stem}" for path in parts)
    return f"{titled('The library')}\n\n" + "\n".join(entries) + f"\n.. toctree::\n   :hidden:\n\n{names}\n"


def summary(path: Path) -> str:
    """The first paragraph of a part's docstring, in one line."""
    return " ".join(ast.get_docstring(tree(path)).partition("\n\n")[0].split())


def page(path: Path) -> str:
    """A package's own names first, then those of its modules that are not among them."""
    gathered = gathered_by(path) if path.is_dir() else {}
    sections = [titled(path.stem), documented(name_of(path), ["imported-members:"] if gathered else [])]
    sections += [f".. autofunction:: {name_of(path)}.{name}" for name in stages(path)]
    functions = {f"{name_of(path)}.{name}" for names in gathered.values() for name in names}
    for module in modules_of(path):
        name, own = name_of(module), public(module)
        taken = gathered.get(name, set()) & own
        if own - taken or gathered.get(name, set()) - own:  # a constant is described where it is set
            options = [f"exclude-members: {', '.join(sorted(taken))}"] if taken else []
            options += ["no-index:"] if name in functions else []  # a link by a name that two have is to the function
            sections += [titled(name.removeprefix("rules2ranks."), "-"), documented(name, options)]
    return "\n\n".join(sections) + "\n"


def modules_of(path: Path) -> list[Path]:
    """The modules of a package and of those within it, but for what is run and not imported."""
    found = sorted(path.rglob("*.py")) if path.is_dir() else []
    return [module for module in found if module.name != "__main__.py" and module != path / "__init__.py"]


def titled(text: str, line: str = "=") -> str:
    return f"{text}\n{line * len(text)}"


def documented(name: str, options: list[str]) -> str:
    return "\n".join([f".. automodule:: {name}", *(f"   :{option}" for option in options)])


def name_of(path: Path) -> str:
    return ".".join(("rules2ranks", *path.relative_to(LIBRARY).with_suffix("").parts)).removesuffix(".__init__")


def tree(path: Path) -> ast.Module:
    return ast.parse((path / "__init__.py" if path.is_dir() else path).read_text(encoding="utf-8"))


def public(module: Path) -> set[str]:
    """Functions and classes of a module that are meant for others."""
    defined = [node.name for node in tree(module).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return {name for name in defined if not name.startswith("_")}


def stages(package: Path) -> list[str]:
    """The functions that the package `stages` imports when they are asked for."""
    return list(ast.literal_eval(constants(package).get("HOMES", ast.List([]))))


def gathered_by(package: Path) -> dict[str, set[str]]:
    """The names that a package with `__all__` offers as its own, by the module that defines them."""
    if "__all__" not in constants(package):
        return {}
    imports = [node for node in tree(package).body if isinstance(node, ast.ImportFrom)]
    return {node.module: {each.name for each in node.names} for node in imports}


def constants(path: Path) -> dict[str, ast.expr]:
    assignments = [node for node in tree(path).body if isinstance(node, ast.Assign)]
    return {ast.unparse(node.targets[0]): node.value for node in assignments}
