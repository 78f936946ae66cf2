"""What models can be asked, all of them: the same questions and the same candidates, so that they can be compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from stemma.data.tokenizers import Tokenizer, pieces_in_text
from stemma.errors import InputError
from stemma.probing.common_vocabulary import common_vocabulary
from stemma.probing.facts import Fact, Facts, Query, Relation, query_of
from stemma.probing.facts_readings import Reading, reading_of

Candidates = Literal["vocabulary", "objects"]

_SPARE = 16  # tokens around a question and its parts


@dataclass(frozen=True)
class Asked:
    """A model in eval mode that is asked. name: for people."""

    name: str
    model: Any
    tokenizer: Tokenizer

    @cached_property
    def reading(self) -> Reading:
        """How it reads questions."""
        return reading_of(self.model, self.tokenizer)


@dataclass(frozen=True)
class Selection:
    """The facts that all of some models can be asked for, and the candidates.

    Args:
        facts: those, with repetitions. distinct: without, by relation. vocabulary: the words that are ranked; None: the
            objects of the relation. dropped: how many facts of the source cannot be asked for, by reason.
        valid: all objects that answer each question in the source, see `Facts.question`.
    """

    facts: Facts
    distinct: Mapping[str, Sequence[Fact]]
    vocabulary: Sequence[str] | None
    dropped: Mapping[str, int]
    valid: Mapping[tuple[str, ...], set[str]]

    @property
    def questions(self) -> int:
        """How many questions each model is asked: one for each fact and template."""
        return sum(len(own) * max(1, len(self.facts.relations[name].templates)) for name, own in self.distinct.items())


def select(
    asked: Sequence[Asked], facts: Facts, *, candidates: Candidates = "vocabulary", words: Sequence[str] | None = None
) -> Selection:
    """Return what all models can be asked, so that they can be compared.

    Args:
        candidates: "vocabulary": all words that are one token in every model; "objects": the objects of the fact's
            relation, of any number of tokens.
        words: what "vocabulary" chooses from; default: see `common_vocabulary`.
    Raises:
        InputError: nothing is left, or a model that cannot be asked.
    """
    vocabulary = _sayable(asked, words) if candidates == "vocabulary" else None
    kept, dropped = _askable(asked, facts, vocabulary)
    if not kept.facts:
        reasons = ", ".join(f"{number:,} {why}" for why, number in dropped.items())
        raise InputError(f"{facts.name}: no fact can be asked for ({reasons})")
    distinct = {name: _distinct(kept, name) for name in kept.relations}
    return Selection(kept, distinct, vocabulary, dropped, facts.valid_objects())


def _sayable(asked: Sequence[Asked], words: Sequence[str] | None) -> list[str]:
    """Return the words that are one token in every model, and that every model can answer."""
    found = common_vocabulary([one.tokenizer for one in asked], words)
    for one in asked:
        pieces = pieces_in_text(one.tokenizer, found)
        found = [word for word, (token,) in zip(found, pieces, strict=True) if token < one.reading.answers]
    if not found:
        raise InputError("no word that is one token in all of these models can be the answer of all")
    return found


def _askable(asked: Sequence[Asked], facts: Facts, vocabulary: Sequence[str] | None) -> tuple[Facts, dict[str, int]]:
    """Return the facts that every model can be asked for, and how many of the others there are by reason."""
    if vocabulary is None:
        objects = sorted({fact.object for fact in facts.facts})
        unknown = {
            word
            for one in asked
            for word, ids in zip(objects, pieces_in_text(one.tokenizer, objects), strict=True)
            if not ids or one.tokenizer.unknown in ids or max(ids) >= one.reading.answers
        }
        possible = set(objects) - unknown
    else:
        possible = set(vocabulary)
    found = [fact for fact in facts.facts if fact.object in possible]
    reason = "object not one token in every model" if vocabulary is not None else "object unknown to a model"
    dropped = {reason: len(facts.facts) - len(found)}
    fitting = np.ones(len(found), bool)
    most = max(len(facts.relations[fact.relation].templates) for fact in found) if found else 0
    for number in range(max(most, 1)):
        queries = [nth_query(fact, facts.relations[fact.relation], number) for fact in found]
        sizes = np.array([len(query.left.encode()) + len(query.right.encode()) for query in queries])
        for reading in (one.reading for one in asked):
            if reading.limit is not None:
                # No tokenizer makes more tokens than bytes, but for a few at the ends: most need no closer look.
                for place in np.flatnonzero(sizes + _SPARE > reading.limit):
                    fitting[place] &= reading.fits(reading.rows([queries[place]])[0])
    dropped["longer than a model reads"] = int((~fitting).sum())
    left = [fact for fact, fits in zip(found, fitting, strict=True) if fits]
    met = {fact.relation for fact in left}
    relations = {name: relation for name, relation in facts.relations.items() if name in met}
    return replace(facts, facts=left, relations=relations), {why: number for why, number in dropped.items() if number}


def nth_query(fact: Fact, relation: Relation, number: int) -> Query:
    """Return the question by the n-th template, by the last where there are not so many."""
    templates = relation.templates
    return query_of(fact, templates[min(number, len(templates) - 1)] if templates else None)


def _distinct(facts: Facts, relation: str) -> list[Fact]:
    """Return the facts of a relation without repetitions, in the order in which they first come."""
    by_template = bool(facts.relations[relation].templates)
    found: dict[tuple[str, str, tuple[str, ...]], Fact] = {}
    for fact in facts.facts:
        if fact.relation == relation:
            found.setdefault((fact.subject, fact.object, () if by_template else fact.sentences), fact)
    return list(found.values())
