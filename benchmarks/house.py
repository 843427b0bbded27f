"""How the code of the package and its integrations is cut: sizes, repetition, docstrings.

    python benchmarks/house.py [CHECKOUT] [--base REVISION_OR_CHECKOUT]

With --base, a git revision or another checkout, its figures stand beside those of the checkout.

How each figure is counted:

- lines: all lines of a file; of a function from `def` to its end, docstring included.
- parameters: all but `self`, `cls`, `*args` and `**kwargs`.
- import circles: strongly connected components of more than one module, over every import between
  the modules of one package, those under TYPE_CHECKING and inside functions included. A package's
  `__init__` counts as a module; importing a submodule does not count as importing its package.
- repeated passages: six consecutive lines that stand, stripped of their indentation, in two
  places. Blank lines, comments, docstrings and imports are taken out first. A run of more than six
  equal lines is one passage of each pair of places.
- undocumented names: public classes, functions, methods and modules without a docstring. Dunder
  methods, async twins (`asearch` of `search`) and overrides of a documented method of the same
  name in a base class of the tree are left out.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import tarfile
import tempfile
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import median

FOLDERS = ("e2rank_rag", "integrations")
PASSAGE = 6
LONG_FUNCTION = 50
MANY_PARAMETERS = 7

Function = ast.FunctionDef | ast.AsyncFunctionDef
Place = tuple[str, int]


@dataclass
class Source:
    """One Python file: its dotted module name, text and tree."""

    path: str
    module: str
    text: str
    tree: ast.Module = field(init=False)

    def __post_init__(self) -> None:
        self.tree = ast.parse(self.text)

    @property
    def lines(self) -> int:
        """All lines of the file."""
        return len(self.text.splitlines())

    def functions(self) -> Iterator[Function]:
        """All functions and methods, nested ones too."""
        for node in ast.walk(self.tree):
            if isinstance(node, Function):
                yield node


def read_sources(checkout: Path) -> list[Source]:
    """The Python files of the package and its integrations."""
    sources = []
    for folder in FOLDERS:
        for path in sorted((checkout / folder).rglob("*.py")):
            relative = path.relative_to(checkout)
            parts = relative.with_suffix("").parts
            if folder == "integrations":
                parts = parts[2:]  # each integration is an import root of its own
            name = ".".join(parts).removesuffix(".__init__")
            sources.append(Source(relative.as_posix(), name, path.read_text(encoding="utf-8")))
    return sources


def parameters(function: Function) -> int:
    """How many a caller may give by position or by name."""
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def length(function: Function) -> int:
    """Lines from `def` to the end."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def import_graph(sources: Sequence[Source]) -> dict[str, set[str]]:
    """module -> modules of the tree that it imports, wherever the import stands."""
    modules = {source.module for source in sources}
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for source in sources:
        package = source.path.endswith("__init__.py")
        for node in ast.walk(source.tree):
            for name in _imported(node, source.module, package, modules):
                if name in modules and name != source.module:
                    graph[source.module].add(name)
    return graph


def _imported(node: ast.AST, module: str, package: bool, modules: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = module.split(".")
            kept = parts[: len(parts) - node.level + package]
            base = ".".join([*kept, *filter(None, [base])])
        for alias in node.names:
            submodule = f"{base}.{alias.name}"
            yield submodule if submodule in modules else base


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module."""
    reached = {module: _reachable(graph, module) for module in graph}
    found = set()
    for module in graph:
        mutual = {other for other in reached[module] if module in reached[other]} | {module}
        if len(mutual) > 1:
            found.add(tuple(sorted(mutual)))
    return [list(circle) for circle in sorted(found)]


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for other in graph[waiting.pop()] - seen:
            seen.add(other)
            waiting.append(other)
    return seen


def code_lines(source: Source) -> list[tuple[int, str]]:
    """Line numbers and stripped lines that count for repetition."""
    left_out = set()
    for node in ast.walk(source.tree):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.Import | ast.ImportFrom) or (
            text and isinstance(node.value.value, str)
        ):
            left_out.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.start[1]
    kept = []
    for number, line in enumerate(source.text.splitlines(), 1):
        stripped = line[: comments.get(number)].strip()
        if stripped and number not in left_out:
            kept.append((number, stripped))
    return kept


def repeated_passages(sources: Sequence[Source]) -> list[tuple[Place, Place, int]]:
    """Pairs of places with equal passages, and how many lines they have in common."""
    files = {source.path: code_lines(source) for source in sources}
    places: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for path, lines in files.items():
        for start in range(len(lines) - PASSAGE + 1):
            window = tuple(line for _, line in lines[start : start + PASSAGE])
            places[window].append((path, start))
    pairs = {pair for found in places.values() for pair in combinations(sorted(found), 2)}
    passages = []
    for (one, i), (other, j) in sorted(pairs):
        if ((one, i - 1), (other, j - 1)) in pairs or (one == other and j - i < PASSAGE):
            continue
        more = 0
        while ((one, i + more), (other, j + more)) in pairs:
            more += 1
        first, second = files[one][i][0], files[other][j][0]
        passages.append(((one, first), (other, second), PASSAGE - 1 + more))
    return passages


def undocumented(sources: Sequence[Source]) -> list[str]:
    """Public names without a docstring, as `path:line name`."""
    classes = {
        node.name: node
        for source in sources
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef)
    }
    found = []
    for source in sources:
        parts = source.module.split(".")
        if any(part.startswith("_") for part in parts):
            continue
        if source.text.strip() and ast.get_docstring(source.tree) is None:
            found.append(f"{source.path}:1 module")
        for node in source.tree.body:
            if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
                names = _undocumented_in(node, source.tree, classes)
                found += [f"{source.path}:{line} {name}" for line, name in names]
    return found


def _undocumented_in(
    node: Function | ast.ClassDef, within: ast.Module, classes: dict[str, ast.ClassDef]
) -> Iterator[tuple[int, str]]:
    if ast.get_docstring(node) is None and not _is_twin(node, within.body):
        yield node.lineno, node.name
    if not isinstance(node, ast.ClassDef):
        return
    for method in node.body:
        if (
            isinstance(method, Function)
            and not method.name.startswith("_")
            and ast.get_docstring(method) is None
            and not _is_twin(method, node.body)
            and not _overrides(method.name, node, classes)
            and not _is_setter(method)
        ):
            yield method.lineno, f"{node.name}.{method.name}"


def _is_twin(node: ast.AST, siblings: Sequence[ast.stmt]) -> bool:
    """Whether an async function has a sibling of the same name without its `a` or `_async`."""
    if not isinstance(node, Function):
        return False
    twins = {node.name[1:] if node.name.startswith("a") else "", node.name.removesuffix("_async")}
    return any(isinstance(s, Function) and s is not node and s.name in twins for s in siblings)


def _is_setter(node: Function) -> bool:
    return any(_last_name(each) in ("setter", "overload") for each in node.decorator_list)


def _last_name(node: ast.expr) -> str:
    """`Base` of `package.Base[T]`."""
    if isinstance(node, ast.Subscript | ast.Call):
        return _last_name(node.value if isinstance(node, ast.Subscript) else node.func)
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _overrides(name: str, node: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> bool:
    """Whether a base class documents this method, or is another library's."""
    for base in map(_last_name, node.bases):
        if base not in classes:
            if base not in ("NamedTuple", "Protocol", "object", "Generic"):
                return True
            continue
        for method in classes[base].body:
            if isinstance(method, Function) and method.name == name:
                return ast.get_docstring(method) is not None
        if _overrides(name, classes[base], classes):
            return True
    return False


def measure(checkout: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Figures by name, and the lists behind them by name."""
    sources = read_sources(checkout)
    functions = [(length(f), source.path, f) for source in sources for f in source.functions()]
    lines = sorted((source.lines, source.path) for source in sources)
    longest = max(functions, key=lambda each: each[0])
    circular = circles(import_graph(sources))
    passages = repeated_passages(sources)
    bare = undocumented(sources)
    long = sorted((f for f in functions if f[0] > LONG_FUNCTION), key=lambda each: -each[0])
    many = [f for f in functions if parameters(f[2]) > MANY_PARAMETERS]
    lists = {
        "files over 400 lines": [f"{n} {path}" for n, path in lines if n > 400],
        f"functions over {LONG_FUNCTION} lines": [f"{n} {p} {f.name}" for n, p, f in long],
        f"functions of more than {MANY_PARAMETERS} parameters": [
            f"{parameters(f)} {path} {f.name}" for _, path, f in many
        ],
        "circles of imports": [" <-> ".join(circle) for circle in circular],
        f"repeated passages of {PASSAGE} lines": [
            f"{n} lines: {one[0]}:{one[1]} = {other[0]}:{other[1]}" for one, other, n in passages
        ],
        "public names without a docstring": bare,
    }
    figures = {
        "files": f"{len(sources):,}",
        "lines": f"{sum(n for n, _ in lines):,}",
        "median lines of a file": f"{median(n for n, _ in lines):g}",
        "longest file": f"{lines[-1][0]}",
        "functions": f"{len(functions):,}",
        "median lines of a function": f"{median(f[0] for f in functions):g}",
        "longest function": f"{longest[0]}",
        **{name: f"{len(found):,}" for name, found in lists.items()},
    }
    return figures, lists


def checked_out(base: str, repository: Path, folder: Path) -> Path:
    """The checkout `base`, or that git revision of the repository, unpacked into the folder."""
    if Path(base).is_dir():
        return Path(base)
    command = ["git", "-C", str(repository), "archive", base, *FOLDERS]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


def main() -> None:
    """Print the figures, before and after where a base is given, and the lists behind them."""
    parser = argparse.ArgumentParser(description=re.split(r"\n\n", str(__doc__))[0])
    parser.add_argument("checkout", nargs="?", type=Path, default=Path(__file__).parent.parent)
    parser.add_argument("--base", help="a git revision or another checkout to compare with")
    arguments = parser.parse_args()
    columns, (figures, lists) = [], measure(arguments.checkout)
    if arguments.base is not None:
        with tempfile.TemporaryDirectory() as folder:
            place = checked_out(arguments.base, arguments.checkout, Path(folder))
            columns.append((arguments.base[:10], measure(place)[0]))
    columns.append(("now", figures))
    print(f"{'':42}" + "".join(f"{name:>12}" for name, _ in columns))
    for name in figures:
        print(f"{name:42}" + "".join(f"{values[name]:>12}" for _, values in columns))
    for name, found in lists.items():
        if found:
            print(f"\n{name}:")
            print("\n".join(f"  {each}" for each in found))


if __name__ == "__main__":
    main()
