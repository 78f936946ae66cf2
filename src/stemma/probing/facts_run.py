"""Asking models for facts, and what came out."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from torch import Tensor

from stemma.data.tokenizers import Tokenizer, pieces_in_text
from stemma.probing.facts import Fact, query_of
from stemma.probing.facts_answers import answer_scores
from stemma.probing.facts_baselines import frequency_ranks, names_object, ranked_answers
from stemma.probing.facts_scores import Answered, precision_at, summary_of
from stemma.probing.facts_selection import Asked, Selection, nth_query

_AT_ONCE = 1024  # facts, whose scores of all candidates are held

FREQUENCY = "most frequent object"


@dataclass(frozen=True)
class Probed:
    """What came out. results: plain data, see `probe`. predictions: plain data, a row for each model and fact."""

    results: dict[str, Any]
    predictions: list[dict[str, Any]]


def probe(
    asked: Sequence[Asked],
    selection: Selection,
    *,
    answers: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
    per_token: bool = False,
    report: Callable[[int], None] = lambda done: None,
) -> Probed:
    """Ask every model every question.

    Words of a vocabulary are ranked by the probability of their token in the blank, objects as `answer_scores` says.

    Args:
        answers: of other systems, by name; see `ranked_answers`. per_token: see `answer_scores`.
        report: called with the number of questions just answered.
    Returns:
        results: coverage (lines read, facts asked, dropped by reason, repeated); candidates; string_match, the share of
        facts whose subject names the object; right_side_unread; answers, for each baseline and model its summary (see
        `summary_of`), with several templates also of the best one, chosen for each half of the subjects on the other
        half, and of their ensemble, the mean of log-probabilities; relations, for each what it is and each model's P@1
        by template, its commonest answer's share, and how often two templates agree.
    """
    kept, distinct = selection.facts, selection.distinct
    summaries = {FREQUENCY: frequency_ranks(kept)}
    summaries |= {name: ranked_answers(kept, given) for name, given in (answers or {}).items()}
    relations: dict[str, Any] = {
        name: {"kind": one.kind, "label": one.label, "models": {}} for name, one in kept.relations.items()
    }
    several = any(len(relation.templates) > 1 for relation in kept.relations.values())
    predictions: list[dict[str, Any]] = []
    for one in asked:
        words = None if selection.vocabulary is None else _Columns.of(one.tokenizer, selection.vocabulary)
        for name, own in distinct.items():
            columns = words or _Columns.of(one.tokenizer, _objects(own))
            found = _ask(one, selection, name, columns, per_token, report)
            for reading, answered in (found.readings if several else {"": found.readings[""]}).items():
                summaries.setdefault(one.name + reading, {})[name] = (answered.rank, answered.filtered)
            relations[name]["models"][one.name] = found.described()
            predictions += _predictions(one.name, own, found.readings[""], columns.names)
    most = len(selection.vocabulary or ()) or max(len(_objects(own)) for own in distinct.values())
    kinds = {name: relation.kind for name, relation in kept.relations.items()}
    count = sum(map(len, distinct.values()))
    results = {
        "facts": kept.name,
        "coverage": {
            "read": kept.read,
            "asked": count,
            "dropped": {**kept.dropped, **selection.dropped},
            "repeated": len(kept.facts) - count,
        },
        "candidates": {
            "kind": "objects" if selection.vocabulary is None else "vocabulary",
            "most": most,
            "per_token": per_token,
        },
        "string_match": float(np.mean([names_object(fact) for fact in kept.facts])),
        "right_side_unread": _unread(asked, selection),
        "answers": {name: summary_of(ranks, kinds, most) for name, ranks in summaries.items()},
        "relations": relations,
    }
    return Probed(results, predictions)


@dataclass(frozen=True)
class _Columns:
    """Candidates that differ for a model: words that it spells alike (in lower case) share a column.

    names: a word for each column. pieces: its token ids. of_word: where each word is.
    """

    names: list[str]
    pieces: list[tuple[int, ...]]
    of_word: dict[str, int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, words: Sequence[str]) -> "_Columns":
        pieces = [tuple(ids) for ids in pieces_in_text(tokenizer, words)]
        places = {ids: place for place, ids in enumerate(dict.fromkeys(pieces))}
        of_word = {word: places[ids] for word, ids in zip(words, pieces, strict=True)}
        names: dict[int, str] = {}
        for word, place in of_word.items():
            names.setdefault(place, word)
        return cls([names[place] for place in range(len(places))], list(places), of_word)


@dataclass(frozen=True)
class _Found:
    """A model's answers for a relation: readings by the suffix of their name, and each template's."""

    readings: dict[str, Answered]
    by_template: dict[str, Answered]

    def described(self) -> dict[str, Any]:
        tops = [answered.best[:, 0] for answered in self.by_template.values()]
        pairs = [float((one == other).mean()) for one, other in combinations(tops, 2)]
        return {
            "p_at_1_by_template": {name: precision_at(one.rank, 1) for name, one in self.by_template.items()},
            "commonest_answer": max(Counter(tops[0].tolist()).values()) / len(tops[0]),
            "templates_agree": float(np.mean(pairs)) if pairs else None,
        }


def _ask(
    one: Asked,
    selection: Selection,
    relation: str,
    columns: _Columns,
    per_token: bool,
    report: Callable[[int], None],
) -> _Found:
    own, valid, question = selection.distinct[relation], selection.valid, selection.facts.question
    templates: Sequence[str | None] = selection.facts.relations[relation].templates or (None,)
    parts: list[list[Answered]] = [[] for _ in templates]
    together: list[Answered] = []
    for start in range(0, len(own), _AT_ONCE):
        some = own[start : start + _AT_ONCE]
        gold = [columns.of_word[fact.object] for fact in some]
        others = [
            sorted({columns.of_word[word] for word in valid[question(fact)] if word in columns.of_word} - {right})
            for fact, right in zip(some, gold, strict=True)
        ]
        total: Tensor | None = None
        for place, template in enumerate(templates):
            queries = [query_of(fact, template) for fact in some]
            if selection.vocabulary is None:
                scores = answer_scores(
                    one.model, one.tokenizer, one.reading, queries, columns.pieces, per_token=per_token, report=report
                )
            else:
                scores = one.reading.log_probabilities(queries, [ids[0] for ids in columns.pieces], report)
            parts[place].append(Answered.of(scores, gold, others))
            total = scores if total is None else total + scores
        assert total is not None
        together.append(Answered.of(total / len(templates), gold, others))
    by_template = {str(name): Answered.joined(part) for name, part in zip(templates, parts, strict=True)}
    options = list(by_template.values())
    best = _best_template(options, own)
    readings = {"": options[0], ", best template": best, ", all templates": Answered.joined(together)}
    return _Found(readings, by_template)


def _best_template(options: Sequence[Answered], facts: Sequence[Fact]) -> Answered:
    """Return for each half of the subjects the answers to the template that is best on the other half."""
    half = np.array([hashlib.blake2b(fact.subject.encode(), digest_size=1).digest()[0] % 2 for fact in facts])
    which = np.zeros(len(facts), np.int64)
    for side in (0, 1):
        if (half == side).any():
            which[half != side] = int(np.argmax([precision_at(one.rank[half == side], 1) for one in options]))
    return Answered.chosen(options, which)


def _objects(facts: Sequence[Fact]) -> list[str]:
    return list(dict.fromkeys(fact.object for fact in facts))


def _unread(asked: Sequence[Asked], selection: Selection) -> dict[str, float]:
    """Return, for each model that does not see behind the blank, the share of the questions that have words there."""
    relations = selection.facts.relations
    queries = [nth_query(fact, relations[name], 0) for name, own in selection.distinct.items() for fact in own]
    share = float(np.mean([any(map(str.isalnum, query.right)) for query in queries]))
    return {one.name: share for one in asked if not one.reading.both_sides}


def _predictions(model: str, facts: Sequence[Fact], answered: Answered, names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "model": model,
            "relation": fact.relation,
            "subject": fact.subject,
            "object": fact.object,
            "uuid": fact.key,
            "rank": int(answered.rank[number]),
            "filtered_rank": int(answered.filtered[number]),
            "log_probability": float(answered.log_probability[number]),
            "best": [names[place] for place in answered.best[number]],
        }
        for number, fact in enumerate(facts)
    ]
