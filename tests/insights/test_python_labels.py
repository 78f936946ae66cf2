"""Labelled docstrings, against what `ast` finds in the same files, and from documents written here."""

import ast
import inspect
import random
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from stemma.data.documents import Piece
from stemma.insights import python_labels as module
from stemma.insights.python_labels import python_labels

PACKAGES = ("json", "email", "logging", "wsgiref")


@pytest.fixture
def few_files(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Four packages instead of the whole standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for package in PACKAGES for path in sorted((root / package).glob("*.py"))]
    monkeypatch.setattr(module, "python_files", lambda: files)
    return files


def docstrings(files: Iterable[Path]) -> dict[str, set[str]]:
    """All docstrings by package, as `ast` gives them."""
    found: dict[str, set[str]] = {}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node, clean=False)
                if text is not None:
                    found.setdefault(path.parent.name, set()).add(inspect.cleandoc(text).strip())
    return found


def test_labels_are_the_packages_that_the_docstrings_are_from(few_files: list[Path]) -> None:
    data, written = python_labels(classes=3, each=40), docstrings(few_files)
    sizes = {package: len({text[:400] for text in texts if len(text) >= 40}) for package, texts in written.items()}
    assert data.label_names == tuple(sorted(sorted(sizes, key=lambda package: -sizes[package])[:3]))
    for (text,), label in zip(data.texts, data.labels, strict=True):
        assert 40 <= len(text) <= 400
        package = data.label_names[int(label)]
        # A docstring with two empty lines in it is taken to its first.
        assert any(full.startswith(text) for full in written[package])
        others = [other for name in data.label_names if name != package for other in written[name]]
        assert text not in others


def test_labels_are_balanced_up_to_the_cap_and_nothing_is_twice(few_files: list[Path]) -> None:
    everything = python_labels(classes=4, each=1000).label_counts
    assert len(set(everything.values())) > 1
    capped = python_labels(classes=4, each=20)
    assert capped.label_counts == {name: min(count, 20) for name, count in everything.items()}
    assert len(set(capped.texts)) == len(capped)
    assert len(everything) == len(PACKAGES)


def test_the_order_depends_on_the_content_only(few_files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = python_labels(classes=3, each=30)
    assert python_labels(classes=3, each=30) == expected
    shuffled = list(few_files)
    random.Random(0).shuffle(shuffled)
    monkeypatch.setattr(module, "python_files", lambda: shuffled)
    assert python_labels(classes=3, each=30) == expected
    labels = expected.labels[: len(expected) // 2]
    assert len(set(labels)) == 3  # not one package after the other


def reading(documents: dict[str, dict[str, str]]) -> Callable[..., Iterator[Piece]]:
    def read(paths: object, count: object) -> Iterator[Piece]:
        for name, entries in documents.items():
            text = "\n\n\n".join(f"{title}\n\n{body}" for title, body in entries.items())
            yield Piece(text, True, f"help({name})")
            yield Piece("never read: " * 9, True, f"python {name}.py")

    return read


def test_documents_written_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def long(word: str) -> str:
        return f"{word} " * 9 + "a sentence of more than forty characters."

    documents = {
        "one": {"one": long("first"), "one.f": long("second"), "one.g": "too short", "one.h": long("shared")},
        "one.sub": {"one.sub": long("third") + "\n\nAnother paragraph.", "one.sub.f": long("second")},
        "two": {"two": long("fourth"), "two.f": long("shared"), "two.g": "x" * 500},
        "three": {"three": long("fifth")},
    }
    monkeypatch.setattr(module, "read_python", reading(documents))
    data = python_labels(classes=2, each=10)
    found = {text: data.label_names[int(label)] for (text,), label in zip(data.texts, data.labels, strict=True)}
    assert found == {
        long("first"): "one",
        long("second"): "one",
        long("third") + "\n\nAnother paragraph.": "one",
        long("fourth"): "two",
        "x" * 400: "two",
    }  # what both packages have is in neither


@pytest.mark.slow
def test_the_standard_library_has_six_packages_with_many_docstrings() -> None:
    data = python_labels()
    assert list(data.label_counts.values()) == [200] * 6
    assert len(set(data.texts)) == 1200
