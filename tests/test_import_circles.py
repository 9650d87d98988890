"""The project's modules import each other in one direction."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TypeGuard

ROOT = Path(__file__).resolve().parents[1]
FILES = [
    *(ROOT / "csm").rglob("*.py"),
    *(ROOT / "data_prep").rglob("*.py"),
    ROOT / "train.py",
    ROOT / "evaluate.py",
]


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in FILES}


def is_type_checking(node: ast.AST) -> TypeGuard[ast.If]:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(node: ast.AST, inside_functions: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements in `node` that are run."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        for child in node.orelse if is_type_checking(node) else ast.iter_child_nodes(node):
            yield from statements(child, inside_functions)


def imported(module: str, inside_functions: bool = False) -> set[str]:
    """The project's modules that a module imports, without the packages around them.

    `from package import name` imports the module `package.name` if there is one, else something of the package's own.
    """
    found: set[str] = set()
    for statement in statements(ast.parse(MODULES[module].read_text(encoding="utf-8")), inside_functions):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        else:
            assert statement.level == 0, f"{module}: a relative import, line {statement.lineno}"
            for alias in statement.names:
                submodule = f"{statement.module}.{alias.name}"
                found.add(submodule if submodule in MODULES else str(statement.module))
    return {name for name in found if name in MODULES and name != module}


def test_no_module_imports_itself_through_others():
    graph = {module: imported(module) for module in MODULES}
    assert sum(map(len, graph.values())) > 300  # the graph is read, not empty
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"modules import each other in a circle: {' <- '.join(error.args[1])}") from None


def test_the_library_knows_nothing_of_data_preparation():
    """Not even inside a function: csm trains on any dataset that has the documented format."""
    arrows = {
        f"{module} -> {name}"
        for module in MODULES
        if module.partition(".")[0] == "csm"
        for name in imported(module, inside_functions=True)
        if name.partition(".")[0] == "data_prep"
    }
    assert arrows == set()
