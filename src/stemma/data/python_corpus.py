"""The default corpus, there on any machine and offline: the text that ships with Python itself.

Documents are the topics of Python's `help()`, and for every module of the standard library its documentation (all
docstrings, under their qualified names) and its source without them: each docstring is counted once, as prose. Test
suites, generated character tables and build settings are left out, and of equal documents all but the first.
"""

import ast
import hashlib
import inspect
import os
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

from stemma.data.byte_streams import Count
from stemma.data.documents import Piece, whole
from stemma.errors import InputError

SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
SKIPPED_PREFIXES = ("_sysconfigdata", "config-")  # settings of the build, different on every machine
GENERATED = "Python Character Mapping Codec"  # in the docstring of some eighty tables of 256 characters
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def python_files() -> list[Path]:
    """The source files of the running Python's standard library, sorted; the help topics are one of them."""
    root = Path(sysconfig.get_path("stdlib"))
    paths: list[Path] = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in SKIPPED_FOLDERS and not name.startswith(SKIPPED_PREFIXES)]
        modules = [name for name in names if name.endswith(".py") and not name.startswith(SKIPPED_PREFIXES)]
        paths.extend(Path(folder) / name for name in modules)
    if not paths:
        raise InputError(f"python: no source of the standard library in {root}; give a corpus of your own")
    return sorted(paths)


def read_python(paths: Iterable[Path], count: Count) -> Iterator[Piece]:
    """Yield the documents of the corpus. Nothing is imported or run: sources are parsed."""
    root = Path(sysconfig.get_path("stdlib"))
    seen: set[bytes] = set()
    for path in paths:
        count(path.stat().st_size)
        for text, origin in _documents(path, path.relative_to(root)):
            key = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if key not in seen:
                seen.add(key)
                yield from whole([text], origin)


def python_pairs(paths: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Yield pairs to learn from: what a function or class is called and takes, and the first line of its docstring."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in paths:
        parsed = _parsed(path)
        if parsed is None:
            continue
        source, tree = parsed
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for title, text, node in _docstrings(tree, module, source.split("\n")):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                title = f"{title}({ast.unparse(node.args)})"
            if first := inspect.cleandoc(text).partition("\n")[0]:
                yield title, first


def _parsed(path: Path) -> tuple[str, ast.Module] | None:
    try:
        with tokenize.open(path) as file:  # obeys the file's own declaration of its encoding
            source = file.read()
        return source, ast.parse(source)
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return None  # templates and deliberately broken files


def _documents(path: Path, name: Path) -> Iterator[tuple[str, str]]:
    """Yield (text, origin) of the documents in one source file."""
    parsed = _parsed(path)
    if parsed is None:
        return
    source, tree = parsed
    if name.as_posix() == "pydoc_data/topics.py":
        for topic, text in sorted(_topics(tree).items()):
            yield text, f"python topic {topic}"
    elif GENERATED not in (ast.get_docstring(tree) or ""):
        module = ".".join(name.with_suffix("").parts).removesuffix(".__init__")
        documented = list(_docstrings(tree, module, source.split("\n")))
        yield "\n\n\n".join(f"{title}\n\n{inspect.cleandoc(text)}" for title, text, _ in documented), f"help({module})"
        yield _without([node for _, _, node in documented], source), f"python {name.as_posix()}"


def _topics(tree: ast.Module) -> dict[str, str]:
    for statement in tree.body:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and isinstance(statement.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(statement.value)
            return topics
    return {}


def _docstrings(node: ast.AST, title: str, lines: list[str]) -> Iterator[tuple[str, str, Documented]]:
    """Yield (qualified name, docstring, documented node) in order, where the docstring has its lines to itself."""
    if isinstance(node, Documented) and _stands_alone(node, lines):
        yield title, ast.get_docstring(node, clean=False) or "", node
    for child in ast.iter_child_nodes(node):
        inner = title
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            inner = f"{title}.{child.name}"
        yield from _docstrings(child, inner, lines)


def _stands_alone(node: Documented, lines: list[str]) -> bool:
    if not ast.get_docstring(node, clean=False):
        return False
    first = node.body[0]
    last_line = lines[(first.end_lineno or 0) - 1].encode()
    before = lines[first.lineno - 1].encode()[: first.col_offset]
    return not before.strip() and not last_line[first.end_col_offset :].strip()


def _without(documented: list[Documented], source: str) -> str:
    """The source without these docstrings; `pass` where nothing else would be left of a body."""
    lines: list[str | None] = list(source.split("\n"))
    for node in documented:
        first = node.body[0]
        start, end = first.lineno - 1, first.end_lineno or first.lineno
        lines[start:end] = [None] * (end - start)
        if len(node.body) == 1 and not isinstance(node, ast.Module):
            lines[start] = " " * first.col_offset + "pass"
    return "\n".join(line for line in lines if line is not None)
