"""Which of the project's own code a module runs: itself, what it imports, what that imports.

Imports are read from the source, those inside functions as well; imports for type checkers alone
do not count. Two kinds of modules are left out. Junctions name all methods and networks, of which a
row uses its own: whoever asks for a row's code names those beside. Machinery starts processes,
moves bytes and shows progress: it decides no number of a result, and mending it must not make a
training of a week start anew.

`python -m selfdistill.sources OUTPUT LOCK MODULE...` writes down what the modules run: a stage of
DVC, on which those depend that run the code.
"""

import argparse
import ast
import hashlib
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path

from packaging.markers import Marker

from selfdistill.files import write_json

JUNCTIONS = frozenset(
    {
        "selfdistill.methods.config",
        "selfdistill.methods.known",
        "selfdistill.networks.config",
    }
)
MACHINERY = frozenset(
    {
        "selfdistill",  # its version
        "selfdistill.base_config",
        "selfdistill.distributed.launch",
        "selfdistill.distributed_config",
        "selfdistill.files",
        "selfdistill.lifeline",
        "selfdistill.progress",
        "selfdistill.sources",
    }
)
_BESIDE = {"kedro", "pydantic", "tqdm"}
_ROOT = Path(__file__).parents[1]


class Code:
    """The code that modules run.

    Args:
        modules: Dotted names.
        root: Folder of the package.

    Attributes:
        modules: These and all that they import of the package, sorted; neither machinery nor
            junctions.
        junctions: The junctions that they reach.
        packages: Top-level names of all else that is imported, the standard library included.
    """

    def __init__(self, modules: Iterable[str], root: Path = _ROOT) -> None:
        self._root = root
        waiting, seen = list(modules), set[str]()
        packages = set[str]()
        while waiting:
            module = waiting.pop()
            if module in seen:
                continue
            seen.add(module)
            if module in JUNCTIONS | MACHINERY:
                continue
            own, others = _imports(module, root)
            waiting += own
            packages |= others
        self.modules = sorted(seen - JUNCTIONS - MACHINERY)
        self.junctions = frozenset(seen & JUNCTIONS)
        self.packages = frozenset(packages)

    @property
    def files(self) -> list[Path]:
        """The modules' files, in the order of their names."""
        return [_file(module, self._root) for module in self.modules]

    @property
    def relative_files(self) -> list[Path]:
        """These, relative to the folder that the package lies in."""
        return [file.relative_to(self._root) for file in self.files]

    def fingerprint(self) -> str:
        """Return 16 hex digits that change with the code, and not with comments or docstrings."""
        return _digest(self.files, self._root)

    def record(self, pins: Mapping[str, str]) -> dict[str, dict[str, str]]:
        """Return what the modules are, and what they run on.

        Args:
            pins: Version of each distribution.

        Returns:
            "modules": 16 hex digits each, which change as those of `fingerprint`; "packages": the
            versions of what they import.

        Raises:
            ValueError: If a package is not installed, or has no pin, or another version is
                installed than the pinned one.
        """
        names = sorted(distributions_of(self.packages))
        if missing := [name for name in names if name not in pins]:
            raise ValueError(
                f"{', '.join(missing)}: imported by src, but not in requirements.lock: add it to "
                "the dependencies in pyproject.toml and run make lock"
            )
        return {
            "modules": {
                module: _digest([file], self._root)
                for module, file in zip(self.modules, self.files, strict=True)
            },
            "packages": {name: _installed(name, pins[name]) for name in names},
        }


def _installed(name: str, pin: str) -> str:
    """Return a pin, if it is the installed version; builds (+cu130, +cpu) are not looked at."""
    if (found := version(name)).partition("+")[0] != pin.partition("+")[0]:
        raise ValueError(
            f"{name} {found} is installed, requirements.lock pins {pin}: results would be locked "
            "under code that did not run; make setup installs what is pinned"
        )
    return pin


def distributions_of(packages: Iterable[str]) -> set[str]:
    """Return what brings imported packages, named as in requirements.lock.

    Args:
        packages: Top-level names; the standard library's are left out, and so are those that only
            check, show or carry.

    Raises:
        ValueError: If a package is not installed.
    """
    found = packages_distributions()
    names = set(packages) - sys.stdlib_module_names - _BESIDE
    if missing := sorted(names - found.keys()):
        raise ValueError(f"{', '.join(missing)}: imported by src, but not installed: make setup")
    return {re.sub(r"[-_.]+", "-", found[name][0]).lower() for name in names}


def read_pins(file: Path) -> dict[str, str]:
    """Return the versions that a requirements.lock pins for this Python, by name."""
    pins = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        requirement, _, marker = line.partition(";")
        name, separator, version = requirement.strip().partition("==")
        if separator and (not marker or Marker(marker.strip()).evaluate()):
            pins[name.lower()] = version
    return pins


def _digest(files: Iterable[Path], root: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(root).as_posix().encode() + b"\0")
        digest.update(without_remarks(file.read_text(encoding="utf-8")).encode() + b"\0")
    return digest.hexdigest()[:16]


def without_remarks(source: str) -> str:
    """Return Python source without docstrings, comments and empty lines."""
    tree = ast.parse(source)
    rows = [row.encode() for row in source.splitlines()]  # ast counts bytes
    docstrings = [found for node in ast.walk(tree) if (found := _docstring(node)) is not None]
    spans = [_span(docstring) for docstring in docstrings]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, before = token.start[0], token.line[: token.start[1]]
            spans.append((row, len(before.encode()), row, len(rows[row - 1])))
    for first, start, last, end in sorted(spans, reverse=True):
        left = rows[first - 1][:start] + rows[last - 1][end:]
        rows[first - 1 : last] = [left, *[b""] * (last - first)]
    documenting = {id(docstring.value) for docstring in docstrings}
    texts = {
        row
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in documenting
        for row in range(node.lineno, node.end_lineno or node.lineno)
    }
    kept = [
        row if number in texts else row.rstrip()
        for number, row in enumerate(rows, start=1)
        if number in texts or row.strip()
    ]
    return b"\n".join(kept).decode()


def _docstring(node: ast.AST) -> ast.Expr | None:
    """Return the statement that documents a module, a class or a function, if there is one."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
        first = node.body[0]
        assert isinstance(first, ast.Expr)
        return first
    return None


def _span(node: ast.stmt) -> tuple[int, int, int, int]:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return node.lineno, node.col_offset, node.end_lineno, node.end_col_offset


@cache
def _imports(module: str, root: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Return the modules of the package that a module imports, and the names of other packages."""
    package = module.partition(".")[0]
    own, others = set[str](), set[str]()
    for name in _names(ast.parse(_file(module, root).read_text(encoding="utf-8"))):
        if name.partition(".")[0] == package:
            own.add(_module(name, root))
        else:
            others.add(name.partition(".")[0])
    return frozenset(own), frozenset(others)


def _names(node: ast.AST) -> Iterable[str]:
    """Yield what is imported, dotted: for `from a import b` it is `a.b`, module or not."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    for_checkers = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    children = node.orelse if for_checkers else ast.iter_child_nodes(node)  # type: ignore[attr-defined]
    for child in children:
        yield from _names(child)


def _module(name: str, root: Path) -> str:
    """Return the longest part of a dotted name that is a module."""
    while not _file(name, root).is_file():
        name = name.rpartition(".")[0]
    return name


def _file(module: str, root: Path) -> Path:
    place = root.joinpath(*module.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def main() -> None:
    """Write the record of some modules."""
    parser = argparse.ArgumentParser(prog="python -m selfdistill.sources")
    parser.add_argument("output", type=Path)
    parser.add_argument("lock", type=Path)
    parser.add_argument("modules", nargs="+")
    options = parser.parse_args()
    record = Code(options.modules).record(read_pins(options.lock))
    write_json(options.output, record)


if __name__ == "__main__":
    main()
