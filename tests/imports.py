"""What the package's source says of itself, read from its syntax trees: imports, and uses of attributes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "vla_tune"


@dataclass(frozen=True)
class Import:
    """One imported module, by its full name.

    typing: it stands under `TYPE_CHECKING`. late: inside a function.
    """

    source: str
    target: str
    typing: bool
    late: bool


@cache
def trees(root: Path = ROOT) -> dict[str, ast.Module]:
    """The syntax tree of every module of the package, by its full name."""
    files = sorted((root / PACKAGE).rglob("*.py"))
    return {name_of(file.relative_to(root)): ast.parse(file.read_text()) for file in files}


def name_of(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def is_package(name: str, root: Path = ROOT) -> bool:
    return (root / Path(*name.split(".")) / "__init__.py").is_file()


@cache
def imports(root: Path = ROOT) -> list[Import]:
    """Every import statement of the package's own modules and of others, wherever it stands."""
    return [one for name, tree in trees(root).items() for one in _imports(name, tree, root)]


def own(root: Path = ROOT) -> list[Import]:
    """Those from one module of the package to another."""
    return [one for one in imports(root) if one.target in trees(root) and one.target != one.source]


def _imports(source: str, tree: ast.Module, root: Path) -> Iterator[Import]:
    for node, typing, late in _walk(tree, typing=False, late=False):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(source, node, root)
            below = [f"{module}.{alias.name}" for alias in node.names]
            inside = [name for name in below if name in trees(root)]  # a name that is a module itself
            targets = inside + ([module] if len(inside) < len(below) else [])
        else:
            continue
        for target in dict.fromkeys(targets):
            yield Import(source, target, typing, late)


def _absolute(source: str, node: ast.ImportFrom, root: Path) -> str:
    if not node.level:
        return str(node.module)
    parts = source.split(".")
    base = parts[: len(parts) - node.level + is_package(source, root)]
    return ".".join([*base, *([node.module] if node.module else [])])


def _walk(node: ast.AST, *, typing: bool, late: bool) -> Iterator[tuple[ast.AST, bool, bool]]:
    yield node, typing, late
    late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    guarded = node.body if isinstance(node, ast.If) and _is_typing(node.test) else []
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, typing=typing or child in guarded, late=late)


def _is_typing(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def circle(edges: set[tuple[str, str]]) -> list[set[str]]:
    """The groups of names that reach each other, each with at least two."""
    after: dict[str, set[str]] = {}
    for source, target in edges:
        after.setdefault(source, set()).add(target)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        left = [start]
        while left:
            new = after.get(left.pop(), set()) - seen
            seen |= new
            left += new
        return seen

    known = {name: reached(name) for name in after}
    groups = {frozenset(other for other in known[name] if name in known.get(other, ())) for name in known if name in known[name]}
    return [set(group) for group in groups if len(group) > 1]


def at_start(name: str, root: Path = ROOT) -> set[str]:
    """Everything that importing a module imports: what it and the modules that it imports name outside functions, and their packages."""
    seen: set[str] = set()
    left = [name]
    while left:
        module = left.pop()
        new = {one.target for one in imports(root) if one.source == module and not one.typing and not one.late}
        parts = module.split(".")
        new |= {".".join(parts[:length]) for length in range(1, len(parts))}
        left += [one for one in new - seen if one.split(".")[0] == PACKAGE]
        seen |= new
    return seen
