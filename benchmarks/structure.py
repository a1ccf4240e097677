"""Counts of a checkout: long functions, modules by package, crowded imports, tests by folder.

Run it on two checkouts to compare them; it reads the source and imports nothing of it.

    python benchmarks/structure.py [CHECKOUT ...]
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TOPS = ("mlx_eagle", "convert", "cli")
LONG = 40  # lines of a function
MANY = 12  # modules of ours that one file imports


class Function(NamedTuple):
    """A function and how long it is, from its first line to its last."""

    lines: int
    name: str
    file: str


def sources(root: Path, *tops: str) -> Iterator[tuple[Path, ast.Module]]:
    """Yield the Python files below some folders of a checkout, parsed; no demo data."""
    for top in tops:
        for file in sorted((root / top).rglob("*.py")):
            if "demo" not in file.relative_to(root).parts:
                yield file.relative_to(root), ast.parse(file.read_text())


def functions(file: Path, tree: ast.Module) -> Iterator[Function]:
    """Yield the functions and methods of a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield Function(node.end_lineno - node.lineno + 1, node.name, str(file))


def imported(root: Path, tree: ast.Module) -> set[str]:
    """Return the modules of ours that a file imports, wherever in it."""
    names = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name for name in inner if is_module(root, name)} or {node.module}
    return {name for name in names if name.split(".")[0] == "mlx_eagle"}


def is_module(root: Path, name: str) -> bool:
    """Say whether a dotted name is a module of the checkout; convert/ and cli/ stand beside it."""
    inside = root.joinpath(*name.split("."))
    beside = root.joinpath(*name.split(".")[1:])
    return any(path.with_suffix(".py").is_file() for path in (inside, beside))


def package_of(file: Path) -> str:
    """Return the dotted name of a file's folder."""
    return ".".join(file.parent.parts)


def report(root: Path) -> list[str]:
    """Return the counts of a checkout as lines."""
    ours = list(sources(root, *TOPS))
    found = sorted((f for file, tree in ours for f in functions(file, tree)), reverse=True)
    longest = found[0]
    imports = {file: len(imported(root, tree)) for file, tree in ours}
    crowded = sorted((n, str(file)) for file, n in imports.items() if n > MANY)
    modules = Counter(package_of(file) for file, _ in ours if file.name != "__init__.py")
    return [
        f"modules               {sum(modules.values())} in {len(modules)} packages",
        *(f"  {name:<24}{n}" for name, n in sorted(modules.items())),
        f"functions             {len(found)}",
        f"longest function      {longest.lines} lines: {longest.name} in {longest.file}",
        f"over {LONG} lines         {sum(f.lines > LONG for f in found)}",
        f"files importing more than {MANY} of our modules: {len(crowded)}",
        *(f"  {file:<40}{n}" for n, file in reversed(crowded)),
        *tests(root),
    ]


def tests(root: Path) -> list[str]:
    """Return how many test functions there are, by folder and by kind."""
    folders, kinds = Counter[str](), Counter[str]()
    for file, tree in sources(root, "tests"):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                folders[package_of(file)] += 1
                kinds[kind_of(node)] += 1
    lines = [f"  {name:<24}{n}" for name, n in (*sorted(folders.items()), *sorted(kinds.items()))]
    return [f"test functions        {sum(folders.values())}", *lines]


def kind_of(test: ast.FunctionDef) -> str:
    """Say how a test is fed: by Hypothesis, by a list of cases, or not at all."""
    decorators = " ".join(ast.unparse(node) for node in test.decorator_list)
    if "given(" in decorators:
        return "property"
    return "over a list of cases" if "parametrize(" in decorators else "single case"


def main(roots: list[str]) -> None:
    """Print the counts of every checkout."""
    for root in roots or ["."]:
        print(f"{root}\n" + "\n".join(report(Path(root))))


if __name__ == "__main__":
    main(sys.argv[1:])
