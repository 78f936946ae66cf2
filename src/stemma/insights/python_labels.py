"""Labelled texts that are there on any machine: which package of the standard library is a docstring from?"""

import hashlib
from collections import Counter, defaultdict

from stemma.data.labelled import LabelledData
from stemma.data.python_corpus import python_files, read_python

_SHORTEST, _LONGEST = 40, 400  # characters of a docstring


def python_labels(classes: int = 6, each: int = 200) -> LabelledData:
    """Return docstrings, without the names that they document, of the packages with most of them.

    They come in an order that depends on their content only. One that two of the packages have is in neither.

    Args:
        classes: number of packages. each: at most so many docstrings of one.
    """
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for piece in read_python(python_files(), lambda read: None):
        if piece.origin.startswith("help("):
            for entry in piece.text.split("\n\n\n"):
                title, _, text = entry.partition("\n\n")
                text = text.strip()[:_LONGEST]
                if len(text) >= _SHORTEST:
                    found[title.partition(".")[0]][_key(text)] = text
    largest = sorted(found, key=lambda package: (-len(found[package]), package))[:classes]
    packages = Counter(key for package in largest for key in found[package])
    rows = []
    for package in largest:
        own = sorted((key, text, package) for key, text in found[package].items() if packages[key] == 1)
        rows += own[:each]
    rows.sort()
    names = tuple(sorted(largest))
    return LabelledData([(text,) for _, text, _ in rows], [names.index(package) for *_, package in rows], names)


def _key(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
