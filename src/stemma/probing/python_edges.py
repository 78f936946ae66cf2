"""Two edge-probing tasks that are always there, labelled by Python's own parser: functions of the standard library.

`roles` is syntax: what a name does in the expression it stands in. `scopes` is what the same name refers to, which the
rest of the function decides.
"""

import ast
import builtins
import hashlib
import io
import tokenize
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

from stemma.data.python_corpus import python_files
from stemma.errors import InputError
from stemma.probing.edges import Sentence, Target

PythonTask = Literal["roles", "scopes"]
PYTHON_TASKS: dict[str, PythonTask] = {"python-roles": "roles", "python-scopes": "scopes"}
Function = ast.FunctionDef | ast.AsyncFunctionDef

_LENGTHS = 10, 80  # tokens of a function
_MOST_LINES = 30  # with docstring and comments
_EACH = 4  # functions of a file, so that no module dominates
_SHARES = {"train": 8, "dev": 1, "test": 1}


def python_edges(task: PythonTask, most: int = 2000) -> dict[str, list[Sentence]]:
    """Return the parts "train", "dev" and "test" of a task; the files of the standard library are divided among them.

    Args:
        most: sentences of "train"; an eighth of it of the others.
    Raises:
        InputError: there is no source of the standard library.
    """
    parts: dict[str, list[Sentence]] = {name: [] for name in _SHARES}
    # In an order that has nothing to do with their names, so that any number of them is a sample.
    files = sorted(python_files(), key=lambda path: hashlib.sha256("/".join(path.parts[-2:]).encode()).digest())
    for number, path in enumerate(files):
        part = [name for name, share in _SHARES.items() for _ in range(share)][number % sum(_SHARES.values())]
        limit = most * _SHARES[part] // _SHARES["train"]
        if len(parts[part]) < limit:
            parts[part] += islice(_sentences(path, task), min(_EACH, limit - len(parts[part])))
    if not all(parts.values()):
        raise InputError("too little source of Python's standard library is here; give --train and --dev")
    return parts


def _sentences(path: Path, task: PythonTask) -> Iterator[Sentence]:
    try:
        with tokenize.open(path) as file:
            module = ast.parse(file.read())
    except (SyntaxError, UnicodeDecodeError, ValueError):  # templates and deliberately broken files
        return
    names = dict.fromkeys(dir(builtins), "builtin") | _names_of(module)
    for node in ast.walk(module):
        if isinstance(node, Function) and (node.end_lineno or 0) - node.lineno < _MOST_LINES:
            sentence = _sentence(node, names, task)
            if sentence is not None:
                yield sentence


def _sentence(function: Function, outside: dict[str, str], task: PythonTask) -> Sentence | None:
    """Return a function's tokens, as Python would write it without its docstring, with its names as targets."""
    if ast.get_docstring(function) is not None:
        function.body = function.body[1:] or [ast.Pass()]
    text = ast.unparse(function)
    tree = ast.parse(text)
    places: dict[tuple[int, int], int] = {}
    words: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.string.strip():
            places[token.start] = len(words)
            words.append("".join(token.string.split()))
    if not text.isascii() or not _LENGTHS[0] <= len(words) <= _LENGTHS[1]:  # columns are counted in bytes
        return None
    scopes = outside | _names_inside(tree)
    targets = []
    for parent in ast.walk(tree):
        for field, child in ast.iter_fields(parent):
            for node in child if isinstance(child, list) else [child]:
                if not (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in scopes):
                    continue
                place = places.get((node.lineno, node.col_offset))
                if place is not None:  # None inside of an f-string
                    label = scopes[node.id] if task == "scopes" else _role(parent, field)
                    targets.append((place, label))
    if not targets:
        return None
    return Sentence(tuple(words), tuple(Target(((at, at + 1),), (label,)) for at, label in sorted(targets)))


def _role(parent: ast.AST, field: str) -> str:
    match parent, field:
        case ast.Call(), "func":
            return "called"
        case ((ast.Call() | ast.keyword()), _):
            return "argument"
        case ast.Attribute(), _:
            return "owner"
        case ast.Subscript(), _:
            return "container" if field == "value" else "index"
        case ((ast.BinOp() | ast.BoolOp() | ast.UnaryOp() | ast.Compare()), _):
            return "operand"
        case ((ast.Assign() | ast.AugAssign() | ast.NamedExpr()), _):
            return "assigned"
        case ((ast.Return() | ast.Yield()), _):
            return "returned"
        case ((ast.If() | ast.While() | ast.IfExp() | ast.Assert()), "test"):
            return "condition"
        case ((ast.For() | ast.comprehension()), "iter"):
            return "iterated"
    return "other"


def _names_of(module: ast.Module) -> dict[str, str]:
    """Return what the names at the top of a module are."""
    names: dict[str, str] = {}
    for statement in module.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0]: "imported" for alias in statement.names}
        elif isinstance(statement, Function | ast.ClassDef):
            names[statement.name] = "module"
        elif isinstance(statement, ast.Assign):
            names |= {target.id: "module" for target in statement.targets if isinstance(target, ast.Name)}
    return names


def _names_inside(tree: ast.AST) -> dict[str, str]:
    nodes = list(ast.walk(tree))
    stored = {node.id: "local" for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return stored | {node.arg: "parameter" for node in nodes if isinstance(node, ast.arg)}
