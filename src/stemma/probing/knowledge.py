"""A knowledge base to put beside a model: triples in SQLite that a cloze question is looked up in (Petroni et al. 2019,
figure 1).

The database is built once, in the cache, and again when the files that it was made of change.
"""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stemma.data.content_hashes import digest
from stemma.files import cache_directory, write_whole
from stemma.probing.facts import BLANK, OBJECT, SUBJECT, Facts, read_facts

_VERSION = "1"
_TABLES = """
    create table relation (name text primary key, label text);
    create table template (relation text, text text);
    create table fact (relation text, subject text, object text, subject_key text, object_key text);
    create index by_subject on fact (subject_key, relation);
    create index by_object on fact (object_key, relation);
"""


@dataclass(frozen=True)
class Triple:
    """A fact of the knowledge base. relation: its label, else its name."""

    subject: str
    relation: str
    object: str


class Knowledge:
    """Triples of a file or a folder of facts (see `read_facts`), and the templates that questions are recognised by."""

    def __init__(self, database: Path) -> None:
        self._connection = sqlite3.connect(database)
        templates = self._connection.execute("select relation, text from template")
        self._patterns = [(relation, _pattern(text)) for relation, text in templates]

    @classmethod
    def of(
        cls, path: Path, *, relations: Path | None = None, patterns: Path | None = None, cache: Path | None = None
    ) -> "Knowledge":
        """Return the knowledge base of a file or a folder; it is built if it is not in the cache.

        Raises:
            InputError: see `read_facts`.
        """
        folder = cache_directory() if cache is None else cache
        database = folder / "knowledge" / f"{digest([_VERSION, *_state(path, relations, patterns)])}.sqlite"
        if not database.is_file():
            facts = read_facts(path, relations=relations, patterns=patterns)
            with write_whole(database) as temporary:
                _build(facts, temporary)
        return cls(database)

    def answers(self, text: str, most: int = 8) -> list[Triple]:
        """Return the triples that answer a text with a [MASK], as far as a template puts its question.

        The blank may be the object or the subject. A name that is not there as it is may be part of one.
        """
        found: dict[Triple, None] = {}
        for relation, pattern in self._patterns:
            match = pattern.fullmatch(_plain(text))
            if match is None:
                continue
            subject, gold = match["subject"], match["object"]
            if gold == BLANK and subject != BLANK:
                found |= dict.fromkeys(self._named("subject", subject, relation))
            elif subject == BLANK:
                found |= dict.fromkeys(self._named("object", gold, relation))
        return list(found)[:most]

    def about(self, text: str, most: int = 8) -> list[Triple]:
        """Return what is known of the longest subject that a text names."""
        words = re.findall(r"\w[\w'’.-]*\w|\w", text.replace(BLANK, " "))
        for length in range(min(len(words), 8), 0, -1):
            for start in range(len(words) - length + 1):
                found = list(self._select("subject_key = ?", [_key(" ".join(words[start : start + length]))], most))
                if found:
                    return found
        return []

    def _named(self, side: str, name: str, relation: str) -> list[Triple]:
        """Return the triples of a relation whose subject or object has a name, or else has it in its own."""
        key = _key(name)
        exact = list(self._select(f"{side}_key = ? and fact.relation = ?", [key, relation]))
        words = f"' ' || {side}_key || ' '"
        part = [f" {key} ", relation]
        return exact or list(self._select(f"instr({words}, ?) > 0 and fact.relation = ?", part))

    def _select(self, condition: str, values: Sequence[str], most: int = 64) -> Iterator[Triple]:
        rows = self._connection.execute(
            "select distinct subject, coalesce(nullif(label, ''), fact.relation), object from fact "
            f"join relation on relation.name = fact.relation where {condition} order by fact.rowid limit {most}",
            values,
        )
        return (Triple(*row) for row in rows)


def _build(facts: Facts, path: Path) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.executescript(_TABLES)
        relations = facts.relations.values()
        connection.executemany("insert into relation values (?, ?)", [(one.name, one.label) for one in relations])
        templates = [(one.name, template) for one in relations for template in one.templates]
        connection.executemany("insert into template values (?, ?)", templates)
        rows = [(one.relation, one.subject, one.object, _key(one.subject), _key(one.object)) for one in facts.facts]
        connection.executemany("insert into fact values (?, ?, ?, ?, ?)", rows)
    connection.close()


def _state(*paths: Path | None) -> list[str]:
    """Return what changes when the files do, relations beside them included."""
    found = []
    for path in paths:
        if path is None:
            found.append("")
            continue
        folder = path if path.is_dir() else path.parent
        files = {path, *folder.glob("*.jsonl"), *folder.parent.glob("*.jsonl")} if path.is_dir() else {path}
        files |= set(folder.glob("relations.jsonl")) | set(folder.parent.glob("relations.jsonl"))
        for file in sorted(file for file in files if file.is_file()):
            status = file.stat()
            found.append(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}")
    return found


def _key(name: str) -> str:
    return " ".join(name.casefold().split())


def _plain(text: str) -> str:
    """Return a text without blank space before marks, nor the mark at its end."""
    return re.sub(r"\s+([.,;:!?)])", r"\1", " ".join(text.split())).rstrip(".!? ")


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(f"({re.escape(SUBJECT)}|{re.escape(OBJECT)})", _plain(template))
    groups = {SUBJECT: "(?P<subject>.+)", OBJECT: "(?P<object>.+)"}
    return re.compile("".join(groups.pop(part, re.escape(part)) for part in parts), re.IGNORECASE)
