import ast
import sysconfig
from pathlib import Path

import pytest

from stemma.data import python_corpus
from stemma.data.python_corpus import python_files, read_python

MODULE = '''"""Module documentation."""

import os


class A:
    """What A is.

    More of it.
    """

    def only(self):
        """Nothing else in here."""

    async def method(self): "kept where it is"

    def both(self):
        # ü before the docstring
        """Uses ümlauts."""
        return "not a docstring"


if os.name:
    def inner():
        def deep():
            """Deep down."""
            return """not
            a docstring"""
'''


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small standard library."""
    files = {
        "module.py": MODULE,
        "package/__init__.py": "",
        "package/code.py": "x = 1\n",
        "package/copy.py": "x = 1\n",
        "package/broken.py": "print 'of old'\n",
        "package/tests/test_code.py": "never = 'read'\n",
        "site-packages/other.py": "never = 'read'\n",
        "_sysconfigdata_x.py": "never = 'read'\n",
        "encodings/cp1252.py": '"""Python Character Mapping Codec cp1252 generated from a table."""\nnever = "read"\n',
        "pydoc_data/topics.py": "topics = {'yield': 'About yield.', 'assert': 'About \\n assert.'}\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(python_corpus.sysconfig, "get_path", lambda name: str(tmp_path))
    return tmp_path


def documents() -> dict[str, str]:
    found: dict[str, str] = {}
    for piece in read_python(python_files(), lambda read: None):
        found[piece.origin] = found.get(piece.origin, "") + piece.text
    return found


def test_topics_documentation_and_source_without_tests_copies_and_tables(library):
    assert list(documents()) == [
        "help(module)",
        "python module.py",
        "python package/code.py",  # of which copy.py is a copy
        "python topic assert",
        "python topic yield",
    ]


def test_docstrings_are_moved_from_the_source_to_the_documentation(library):
    found = documents()
    assert found["help(module)"] == (
        "module\n\nModule documentation.\n\n\n"
        "module.A\n\nWhat A is.\n\nMore of it.\n\n\n"
        "module.A.only\n\nNothing else in here.\n\n\n"
        "module.A.both\n\nUses ümlauts.\n\n\n"
        "module.inner.deep\n\nDeep down."
    )
    source = found["python module.py"]
    compile(source, "module.py", "exec")
    assert "    def only(self):\n        pass\n" in source
    for kept in '"kept where it is"', '"not a docstring"', '"""not\n            a docstring"""':
        assert kept in source
    for moved in "Module doc", "What A", "Nothing else", "Uses", "Deep":
        assert moved not in source


def test_the_real_library_is_parsed_not_run_and_no_docstring_counts_twice():
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for path in python_files() if path.parent.name in ("json", "pydoc_data", "collections", "asyncio")]
    assert files and not any("test" in path.relative_to(root).parts for path in python_files())
    found = {}
    for piece in read_python(files, lambda read: None):
        found[piece.origin] = found.get(piece.origin, "") + piece.text
    assert len(set(found.values())) == len(found)
    assert "assert_stmt ::=" in found["python topic assert"]
    assert "Serialize ``obj`` to a JSON formatted ``str``." in found["help(json)"]
    for origin, text in found.items():
        if origin.endswith(".py"):
            nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, python_corpus.Documented)]
            assert not any(ast.get_docstring(node) for node in nodes), origin
