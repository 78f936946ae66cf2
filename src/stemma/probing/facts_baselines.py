"""Answers without a language model, and what facts give away (Petroni et al. 2019, 4.2; Poerner et al. 2020, 3)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stemma.data.tables import read_rows
from stemma.errors import InputError
from stemma.probing.facts import Fact, Facts

_NOWHERE = np.iinfo(np.int64).max  # behind every candidate


def frequency_ranks(facts: Facts) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rank the objects of each relation by how often they occur in it, as LAMA's "Freq": an upper bound for a model
    that knows the relation and nothing of the subject.

    Repeated facts count as often as they are there; of equally frequent objects the first comes first.

    Returns:
        for each relation, int64 [facts]: raw and filtered ranks.
    """
    found, valid = {}, facts.valid_objects()
    for name in facts.relations:
        own = [fact for fact in facts.facts if fact.relation == name]
        ordered = [gold for gold, _ in Counter(fact.object for fact in own).most_common()]
        found[name] = _ranks(facts, valid, own, [ordered] * len(own))
    return found


def ranked_answers(facts: Facts, answers: Mapping[str, Sequence[str]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return raw and filtered ranks, as above, of given answers: another system's, such as a relation extractor's.

    Args:
        answers: by the facts' keys, best first. A fact whose object is not among them has the rank behind all.
    """
    found, valid = {}, facts.valid_objects()
    for name in facts.relations:
        own = [fact for fact in facts.facts if fact.relation == name]
        found[name] = _ranks(facts, valid, own, [answers.get(fact.key, ()) for fact in own])
    return found


def read_answers(path: Path) -> dict[str, list[str]]:
    """Read another system's answers: JSONL with the `uuid` of a fact and its `answers`, best first.

    Raises:
        InputError: a line that lacks one of them, or a file that cannot be read.
    """
    found = {}
    for row, origin in read_rows(path):
        answers = row.get("answers")
        if "uuid" not in row or not isinstance(answers, list):
            raise InputError(f"{origin}: expected 'uuid' and a list 'answers'")
        found[str(row["uuid"])] = [str(answer) for answer in answers]
    return found


def names_object(fact: Fact) -> bool:
    """Return whether the subject's name holds the object, so that it can be guessed without knowing anything."""
    return fact.object.casefold() in fact.subject.casefold()


def _ranks(
    facts: Facts, valid: Mapping[tuple[str, ...], set[str]], own: Sequence[Fact], answers: Sequence[Sequence[str]]
) -> tuple[np.ndarray, np.ndarray]:
    raw, filtered = [], []
    for fact, ordered in zip(own, answers, strict=True):
        if fact.object not in ordered:
            raw.append(_NOWHERE)
            filtered.append(_NOWHERE)
            continue
        before = ordered[: ordered.index(fact.object)]
        raw.append(len(before) + 1)
        filtered.append(len(before) + 1 - sum(answer in valid[facts.question(fact)] for answer in before))
    return np.array(raw), np.array(filtered)
