"""Facts that a model is asked for as cloze questions: LAMA's four sources, one fact a line (Petroni et al. 2019, 4.1).

T-REx       a file a relation, `sub_label` and `obj_label`; the templates are in relations.jsonl
Google-RE   the same with `judgments`, three relations whose templates are known here
ConceptNet  `masked_sentences` instead of a template
SQuAD       likewise
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stemma.data.tables import read_rows
from stemma.errors import InputError, closest

SUBJECT, OBJECT, BLANK = "[X]", "[Y]", "[MASK]"
RELATIONS = "relations.jsonl"

# Petroni et al. 2019, section 4.1.1, as their code writes them.
GOOGLE_RE = {
    "place_of_birth": "[X] was born in [Y] .",
    "date_of_birth": "[X] (born [Y]).",
    "place_of_death": "[X] died in [Y] .",
}
_MOST_WORDS = 100  # of sentences that are asked as they are


@dataclass(frozen=True)
class Relation:
    """What holds between a subject and an object.

    Args:
        templates: with [X] for the subject and [Y] for the object; the first is the published one.
        kind: "1-1", "N-1" or "N-M", "" where nobody says. label: for people.
    """

    name: str
    templates: tuple[str, ...] = ()
    kind: str = ""
    label: str = ""


@dataclass(frozen=True)
class Fact:
    """That `object` stands in `relation` to `subject`.

    Args:
        key: its uuid. sentences: the question itself, with [MASK] in one of them, where there is no template.
    """

    relation: str
    subject: str
    object: str
    key: str = ""
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """A source of facts. read: lines of its files. dropped: how many of them are no facts, by why."""

    name: str
    relations: Mapping[str, Relation]
    facts: Sequence[Fact]
    read: int
    dropped: Mapping[str, int] = field(default_factory=dict)

    def question(self, fact: Fact) -> tuple[str, ...]:
        """Return what is asked for a fact: relation and subject, or its own sentences where there is no template."""
        return (fact.relation, fact.subject, *(() if self.relations[fact.relation].templates else fact.sentences))

    def valid_objects(self) -> dict[tuple[str, ...], set[str]]:
        """Return all objects that answer each question."""
        found: dict[tuple[str, ...], set[str]] = {}
        for fact in self.facts:
            found.setdefault(self.question(fact), set()).add(fact.object)
        return found


@dataclass(frozen=True)
class Query:
    """A cloze question: what stands before and after the blank in its sentence, and the sentences around that one."""

    before: str
    after: str
    earlier: str = ""
    later: str = ""

    @classmethod
    def of(cls, sentences: Sequence[str]) -> "Query":
        """Return the question whose blank is the first [MASK] in some sentences.

        Raises:
            InputError: there is none.
        """
        for place, sentence in enumerate(sentences):
            before, blank, after = sentence.partition(BLANK)
            if blank:
                return cls(before.rstrip(), after, " ".join(sentences[:place]), " ".join(sentences[place + 1 :]))
        raise InputError(f"no blank in {' '.join(sentences)[:60]!r}: expected {BLANK} in it")

    @property
    def left(self) -> str:
        """All that stands before the blank; the blank space before it belongs to the answer."""
        return f"{self.earlier} {self.before}".strip() if self.earlier else self.before

    @property
    def right(self) -> str:
        """All that stands after it."""
        return f"{self.after} {self.later}" if self.later else self.after


def query_of(fact: Fact, template: str | None) -> Query:
    """Return the question for the object of a fact; without a template in the fact's own sentences."""
    return Query.of(fact.sentences if template is None else [cloze(template, fact.subject)])


def cloze(template: str, subject: str) -> str:
    """Fill a template's [X], and blank its [Y]."""
    return BLANK.join(part.replace(SUBJECT, subject) for part in template.split(OBJECT))


def read_relations(path: Path, patterns: Path | None = None) -> dict[str, Relation]:
    """Read relations.jsonl: `relation`, `template` and, where known, `type` and `label`.

    Args:
        patterns: a folder of further templates, a file a relation with a `pattern` a line, as ParaRel's (Elazar et al.
            2021).
    Raises:
        InputError: a file that cannot be read, a folder that is not there, or a line without a relation or with a
            template that lacks [X] or [Y].
    """
    if patterns is not None and not patterns.is_dir():
        raise InputError(f"{patterns}: no such folder of templates")
    found = {}
    for row, origin in read_rows(path):
        name = _text(row, "relation", origin)
        templates = [_template(row, "template", origin)]
        more = patterns / f"{name}.jsonl" if patterns is not None else None
        if more is not None and more.is_file():
            templates += [_template(line, "pattern", place) for line, place in read_rows(more)]
        distinct: dict[str, str] = {}
        for template in templates:  # "born in [Y] ." and "born in [Y]." are one; the first spelling stays
            distinct.setdefault(template.replace(" .", "."), template)
        kind, label = str(row.get("type") or ""), str(row.get("label") or "")
        found[name] = Relation(name, tuple(distinct.values()), kind, label)
    return found


def read_facts(path: Path, *, relations: Path | None = None, patterns: Path | None = None) -> Facts:
    """Read a file of facts, or a folder of such files.

    A fact's relation is its `predicate_id` or `relation`, else the file's name without "_test". A line without a
    subject or an object is dropped, one that more judges of Google-RE call wrong than right, and a question without a
    template that is longer than 100 words.

    Args:
        relations, patterns: see `read_relations`; default: a relations.jsonl in the folder or beside it, if there.
    Raises:
        InputError: nothing to read there, patterns without relations, a broken line, or a fact without template and
            sentences.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder of facts")
    files = sorted(file for file in path.glob("*.jsonl") if file.name != RELATIONS) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: no .jsonl in this folder; expected a file of facts for each relation")
    if relations is None:
        folder = path if path.is_dir() else path.parent
        beside = (one / RELATIONS for one in (folder, folder.parent))
        relations = next((one for one in beside if one.is_file()), None)
    if relations is None and patterns is not None:
        raise InputError(f"{patterns}: further templates of which relations? Expected {RELATIONS} beside {path}")
    known = read_relations(relations, patterns) if relations is not None else {}
    met: dict[str, Relation] = {}
    facts: list[Fact] = []
    dropped: Counter[str] = Counter()
    read = 0
    for file in files:
        for row, origin in read_rows(file):
            read += 1
            name = row.get("predicate_id") or row.get("relation") or file.stem.removesuffix("_test")
            fact = _fact(row, str(name), origin)
            relation = known.get(fact.relation) or _known(fact.relation)
            reason = _fault(row, fact, relation, origin, known)
            if reason:
                dropped[reason] += 1
                continue
            met[relation.name] = relation
            facts.append(fact)
    if not facts:
        raise InputError(f"{path}: no facts in it; expected sub_label and obj_label in its lines")
    return Facts(path.name.removesuffix(".jsonl"), met, facts, read, dict(dropped))


def _known(name: str) -> Relation:
    return Relation(name, (GOOGLE_RE[name],)) if name in GOOGLE_RE else Relation(name)


def _fact(row: Mapping[str, Any], relation: str, origin: str) -> Fact:
    sentences = row.get("masked_sentences") or ()
    if isinstance(sentences, str) or not all(isinstance(one, str) for one in sentences):
        raise InputError(f"{origin}: field 'masked_sentences' is not a list of strings")
    subject, gold = (str(row.get(name) or "").strip() for name in ("sub_label", "obj_label"))
    return Fact(relation, subject, gold, str(row.get("uuid") or row.get("id") or ""), tuple(sentences))


def _fault(
    row: Mapping[str, Any], fact: Fact, relation: Relation, origin: str, known: Mapping[str, Relation]
) -> str | None:
    """Return why a line is no fact to ask for, None if it is one."""
    if not fact.subject or not fact.object:
        return "without a subject or an object"
    votes = Counter(one.get("judgment") for one in row.get("judgments") or ())
    if votes["no"] > votes["yes"]:
        return "judged wrong"
    if relation.templates:
        return None
    if not fact.sentences:
        hint = closest(fact.relation, known) or f", expected it in {RELATIONS}"
        raise InputError(f"{origin}: no masked_sentences, and relation '{fact.relation}' has no template{hint}")
    if not any(BLANK in sentence for sentence in fact.sentences):
        return "without a blank"
    return "longer than 100 words" if len(" ".join(fact.sentences).split()) > _MOST_WORDS else None


def _text(row: Mapping[str, Any], name: str, origin: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{origin}: no text in field '{name}'")
    return value.strip()


def _template(row: Mapping[str, Any], name: str, origin: str) -> str:
    template = _text(row, name, origin)
    if SUBJECT not in template or OBJECT not in template:
        raise InputError(f"{origin}: {template!r} lacks {SUBJECT} or {OBJECT}")
    return template
